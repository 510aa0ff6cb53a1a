"""What overlapping a step with the scheduling of the next gives on this machine, and what it costs a newcomer.

`python -m bench.overlap [--quick] [--rounds N]`: the runtime as a process with `--overlap on` and `off` in turn, on one
thread and on all cores, with 8 adapters of rank 16. Throughput at 32 requests in flight; time to the first token of
requests that come one by one. The gate: requests one at a time get the same text in both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import httpx

from bench.engine_adapters import SAME_RANK, make_adapters
from bench.engine_systems import Served, runtime
from bench.in_process import model_path
from bench.load_client import asks
from bench.record import Result, write
from lorafleet_runtime.engine.threads import available_cores
from lorafleet_runtime.model.checkpoint import read_config

NAMES = tuple(f"alike{index}" for index in range(8))
FLIGHT = 32
PROMPT, TOKENS = 128, 64
GATE = ("The capital of France is", "Once upon a time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round on one thread, nothing written")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    threads = (1,) if arguments.quick else tuple(sorted({1, available_cores()}))
    with tempfile.TemporaryDirectory() as folder:
        adapters = make_adapters(Path(folder) / "adapters", read_config(model_path()), SAME_RANK, "alike")
        results = [
            result
            for count in threads
            for result in compare(adapters, Path(folder), count, rounds, FLIGHT if arguments.quick else 3 * FLIGHT)
        ]
    write(results, quick=arguments.quick)


def compare(adapters: dict[str, Path], folder: Path, threads: int, rounds: int, requests: int) -> list[Result]:
    """Both in turn, a fresh process each time."""
    speeds: dict[str, list[float]] = defaultdict(list)
    firsts: dict[str, list[float]] = defaultdict(list)
    texts: dict[str, list[str]] = {}
    for index in range(rounds):
        for mode in ("off", "on"):
            log = folder / f"{threads}-{index}-{mode}.log"
            with runtime(model_path(), adapters, log, "--threads", str(threads), "--overlap", mode) as started:
                texts[mode] = [_text(started.server.url, prompt) for prompt in GATE]
                served = Served(started.server)
                served.run(asks(NAMES, 8, PROMPT, 8, seed=index), 8, 90)
                many = served.run(asks(NAMES, requests, PROMPT, TOKENS, seed=10 + index), FLIGHT, 120)
                speeds[mode].append(many.speed)
                firsts[mode].append(served.run(asks(NAMES, 6, PROMPT, 8, seed=50 + index), 1, 60).ttft)
    if texts["on"] != texts["off"]:
        raise SystemExit(f"the gate: {texts} differ; nothing is measured")
    case = f"{threads} thread{'s' if threads > 1 else ''} of {available_cores()}"
    return [
        _result(case, f"output tokens/s, {FLIGHT} in flight", "tokens/s", speeds),
        _result(case, "first token, one request at a time", "s", firsts),
    ]


def _result(case: str, metric: str, unit: str, found: dict[str, list[float]]) -> Result:
    on, off = statistics.median(found["on"]), statistics.median(found["off"])
    return Result("overlap", case, metric, on, unit, off, on / off, repeats=len(found["on"]))


def _text(url: str, prompt: str) -> str:
    body = {"model": NAMES[0], "prompt": prompt, "max_tokens": 16, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False)
    return str(answer.raise_for_status().json()["choices"][0]["text"])


if __name__ == "__main__":
    main()
