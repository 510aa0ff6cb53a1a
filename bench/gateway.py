"""What the gateway adds to a request on loopback: the same fake replica asked directly and through it, turn
by turn.

Three processes, as in a fleet: this one is the client, the replica and the gateway are children. The replica
answers at once, so what is measured is the gateway and one more connection, never a model."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO

import aiohttp
from aiohttp import web

from bench.record import Result, write

GOAL_MS = 3.0
KEY = "sk-bench"
REVISION = "sha256:" + "0" * 64
CHUNKS = 200
PACE_SECONDS = 0.003
HEADERS = {"Authorization": f"Bearer {KEY}"}
Measure = Callable[[aiohttp.ClientSession], Awaitable[list[float]]]


def main() -> None:
    """Gate, measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, nothing written")
    parser.add_argument("--replica", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.replica:
        web.run_app(_replica(), host="127.0.0.1", port=0, print=_print_port)
        return
    with tempfile.TemporaryDirectory() as folder, _children(Path(folder)) as (direct, gateway, pid):
        results = asyncio.run(_measure(direct, gateway, pid, 10 if arguments.quick else 50))
    write(results, quick=arguments.quick, packages=("starlette", "uvicorn", "uvloop", "aiohttp", "msgspec"))


async def _measure(direct: str, gateway: str, pid: int, repeats: int) -> list[Result]:
    async with aiohttp.ClientSession(direct) as straight, aiohttp.ClientSession(gateway, headers=HEADERS) as through:
        await _gate(straight, through)
        cases: list[tuple[str, Measure, int, float | None]] = [
            ("whole answer", _whole, repeats * 20, GOAL_MS),
            ("first chunk of a stream", _first_chunk, repeats * 10, GOAL_MS),
            ("a paced chunk of a stream", _paced_chunks, max(repeats // 5, 3), GOAL_MS),
        ]
        results = []
        for case, measure, pairs, goal in cases:
            base, ours = await _alternate(measure, straight, through, pairs)
            results += _compare(case, base, ours, pairs, goal)
        results.append(await _cpu_per_chunk(through, pid, repeats))
        return results


async def _alternate(
    measure: Measure, straight: aiohttp.ClientSession, through: aiohttp.ClientSession, pairs: int
) -> tuple[list[float], list[float]]:
    base: list[float] = []
    ours: list[float] = []
    for pair in range(-max(pairs // 10, 1), pairs):  # the first tenth warms up
        order = ((base, straight), (ours, through))
        for samples, session in order if pair % 2 else order[::-1]:
            taken = await measure(session)
            samples += taken if pair >= 0 else []
    return base, ours


def _compare(case: str, base: list[float], ours: list[float], pairs: int, goal: float | None) -> list[Result]:
    rows = []
    for metric, of in (("median", statistics.median), ("p99", _p99)):
        direct, value = of(base) * 1000, of(ours) * 1000
        rows.append(Result("gateway", case, metric, value, "ms", direct, value / direct, repeats=pairs))
    added = (statistics.median(ours) - statistics.median(base)) * 1000
    met = None if goal is None else added <= goal
    rows.append(Result("gateway", case, "added, median", added, "ms", goal=f"<= {goal} ms", met=met, repeats=pairs))
    return rows


def _p99(samples: list[float]) -> float:
    return statistics.quantiles(samples, n=100)[98]


async def _gate(straight: aiohttp.ClientSession, through: aiohttp.ClientSession) -> None:
    """Both ways must give the same text, and the client must see neither token ids nor the wire name."""
    texts = []
    for session in (straight, through):
        async with session.post("/v1/chat/completions", json=_body(session, stream=True)) as response:
            raw = await response.text()
        chunks = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
        texts.append("".join(c["delta"].get("content", "").split("@")[0] for r in chunks for c in r["choices"]))
        if session is through:
            assert "token_ids" not in raw and "acme.pirate" not in raw, raw[:500]
            assert raw.endswith("data: [DONE]\n\n")
    assert texts[0] == texts[1] and len(texts[0]) >= CHUNKS, texts


async def _whole(session: aiohttp.ClientSession) -> list[float]:
    started = time.perf_counter()
    async with session.post("/v1/chat/completions", json=_body(session)) as response:
        await response.read()
        assert response.status == 200, await response.text()
    return [time.perf_counter() - started]


async def _first_chunk(session: aiohttp.ClientSession) -> list[float]:
    started = time.perf_counter()
    async with session.post("/v1/chat/completions", json=_body(session, stream=True, chunks=2)) as response:
        await response.content.readany()
        first = time.perf_counter() - started
        await response.read()
    return [first]


async def _paced_chunks(session: aiohttp.ClientSession) -> list[float]:
    """From the replica's write to the client's read of every chunk; all processes share one monotonic
    clock."""
    delays = []
    body = _body(session, stream=True, pace=PACE_SECONDS)
    async with session.post("/v1/chat/completions", json=body) as response:
        async for data in response.content.iter_any():
            now = time.monotonic()
            delays += [now - float(part.split(b"@", 1)[0]) for part in data.split(b"w@")[1:]]
    assert len(delays) == CHUNKS, len(delays)
    return delays


async def _cpu_per_chunk(session: aiohttp.ClientSession, pid: int, repeats: int) -> Result:
    before, chunks = _cpu_seconds(pid), 0
    for _ in range(repeats):
        async with session.post(
            "/v1/chat/completions", json=_body(session, stream=True, pace=PACE_SECONDS / 3)
        ) as response:
            chunks += (await response.read()).count(b"data: {")
    spent = (_cpu_seconds(pid) - before) * 1e6 / chunks
    return Result("gateway", "a paced chunk of a stream", "processor time", spent, "us", repeats=chunks)


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process, as Linux counts it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _body(
    session: aiohttp.ClientSession, *, stream: bool = False, chunks: int = CHUNKS, pace: float = 0
) -> dict[str, object]:
    direct = "Authorization" not in session.headers
    message = {"role": "user", "content": "word " * 200}
    body = {"model": "acme.pirate" if direct else "pirate", "messages": [message], "stream": stream}
    if direct and stream:
        body["return_token_ids"] = True  # what the gateway asks for: the replica has the same work both ways
    return {**body, "seed": chunks, "temperature": pace}


@contextlib.contextmanager
def _children(folder: Path) -> Iterator[tuple[str, str, int]]:
    """A replica and a gateway over it: their addresses and the gateway's process id."""
    with contextlib.ExitStack() as stack:
        replica = _start(stack, [sys.executable, "-m", "bench.gateway", "--replica"])
        assert replica.stdout is not None
        direct = f"http://127.0.0.1:{int(replica.stdout.readline())}"
        _documents(folder, direct)
        log = stack.enter_context((folder / "gateway.log").open("wb"))
        command = [sys.executable, "-m", "lorafleet_gateway", "serve", "--fleet", str(folder), "--port", "0"]
        process = _start(stack, [*command, "--log-format", "json", "--exit-with-parent"], log)
        yield direct, f"http://127.0.0.1:{_port(folder / 'gateway.log')}", process.pid


def _start(stack: contextlib.ExitStack, command: list[str], log: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    stack.callback(process.communicate)
    stack.callback(process.kill)
    return process


def _port(log: Path) -> int:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        lines = log.read_bytes().splitlines()
        if lines:
            return int(json.loads(lines[0])["port"])
        time.sleep(0.02)
    raise SystemExit("the gateway did not start within 20 s")


def _documents(folder: Path, url: str) -> None:
    placement = {"replica": "smol-0", "revision": REVISION, "state": "Ready"}
    identity = {"id": "acme.pirate", "namespace": "acme", "name": "pirate", "servedName": "pirate"}
    fleet = {
        "version": 1, "generation": 1,
        "baseModel": {"namespace": "models", "name": "smol", "servedName": "smol"},
        "replicas": [{"name": "smol-0", "incarnation": "i", "url": url, "state": "Ready"}],
        "adapters": [{**identity, "revision": REVISION, "state": "Ready", "placements": [placement]}],
    }  # fmt: skip
    keys = [{"id": "bench", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]
    tenants = [{"name": "acme", "namespaces": ["acme"], "models": [], "keys": keys}]
    (folder / "models.smol.json").write_text(json.dumps(fleet))
    (folder / "tenants.json").write_text(json.dumps({"version": 1, "generation": 1, "tenants": tenants}))


def _replica() -> web.Application:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", _answer)
    return app


def _print_port(text: str) -> None:
    if "Running on" in text:
        print(text.split(":")[2].split()[0], flush=True)


async def _answer(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    head = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
    if not body.get("stream"):
        message = {"role": "assistant", "content": "word " * 100}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({**head, "object": "chat.completion", "choices": [choice]})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for index in range(body["seed"]):
        if body["temperature"]:
            await asyncio.sleep(body["temperature"])
        delta = {"content": f"w@{time.monotonic():.7f}@ "}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, "token_ids": [index]}
        row = json.dumps({**head, "object": "chat.completion.chunk", "choices": [choice]}, separators=(",", ":"))
        await response.write(b"data: " + row.encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


if __name__ == "__main__":
    main()
