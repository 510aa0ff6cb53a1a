"""From a command to the first token, as a user waits for it.

`python -m bench.start [--quick] [--fresh] [--rounds N]`:

* a second start: `lorafleet up -f examples/quickstart` until every model of every tenant has answered with a token;
* with `--fresh`: `git clone`, then `make up` with an empty package cache, until the base model's first token;
* the operator's environment, installed from its lock into a new virtual environment, on disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from bench.record import Result, write

ROOT = Path(__file__).parents[1]
CALLERS = {"sk-acme-demo": ("smollm2-135m", "pirate", "support"), "sk-globex-demo": ("haiku", "json", "support")}
PATIENCE_SECONDS = 1200.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, nothing written")
    parser.add_argument("--fresh", action="store_true", help="also from an empty machine: downloads about 3 GB")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    results = second_start(rounds)
    with tempfile.TemporaryDirectory() as folder:
        results.append(operator_size(Path(folder)))
        if arguments.fresh:
            results.append(fresh_start(Path(folder)))
    write(results, quick=arguments.quick)


def second_start(rounds: int) -> list[Result]:
    """Every package installed, the model file on disk."""
    first: list[float] = []
    every: list[float] = []
    for _ in range(rounds):
        port = free_port()
        with tempfile.TemporaryDirectory() as state:
            command = [sys.executable, "-m", "lorafleet_operator", "up", "-f", "examples/quickstart",
                       "--port", str(port), "--state-dir", state]  # fmt: skip
            seconds = until_tokens(command, ROOT, port)
        first.append(seconds[0])
        every.append(max(seconds))
    return [
        result("second start", "until the base model's first token", first, 25),
        result("second start", "until all six models have answered", every, 25),
    ]


def fresh_start(folder: Path) -> Result:
    """Clone, and `make up`, with nothing in any cache."""
    clone, port = folder / "clone", 8080
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    environment = {**os.environ, "UV_CACHE_DIR": str(folder / "uv"), "PIP_NO_CACHE_DIR": "1",
                   "XDG_CACHE_HOME": str(folder / "cache"), "XDG_STATE_HOME": str(folder / "state")}  # fmt: skip
    environment.pop("VIRTUAL_ENV", None)
    seconds = until_tokens(["make", "up"], clone, port, environment)
    return result("fresh clone, empty caches", "`make up` until the base model's first token", [seconds[0]], 300)


def operator_size(folder: Path) -> Result:
    """Bytes on disk of an environment made from `locks/operator.txt`, Python itself left out."""
    target = folder / "operator"
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") or "uv"
    subprocess.run(
        [uv, "pip", "install", "-q", "--target", str(target), "--require-hashes", "-r", "locks/operator.txt"],
        cwd=ROOT,
        check=True,
    )
    megabytes = sum(f.stat().st_size for f in target.rglob("*") if f.is_file()) / 1e6
    goal = 150
    return Result("start", "operator's environment", "size on disk", megabytes, "MB", goal=f"<= {goal} MB",
                  met=megabytes <= goal)  # fmt: skip


def until_tokens(command: list[str], folder: Path, port: int, environment: dict[str, str] | None = None) -> list[float]:
    """Seconds from the start of `command` until each model's first answer, the base model's first."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            seconds: list[float] = []
            for key, models in CALLERS.items():
                for model in models:
                    while not answers(client, key, model):
                        if process.poll() is not None or time.perf_counter() - begun > PATIENCE_SECONDS:
                            sys.exit(f"{' '.join(command)} has not answered for {model}")
                        time.sleep(0.1)
                    seconds.append(time.perf_counter() - begun)
            return seconds
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)


def answers(client: httpx.Client, key: str, model: str) -> bool:
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Who are you?"}]}
    try:
        response = client.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})
    except httpx.TransportError:
        return False
    return response.status_code == 200


def result(case: str, metric: str, seconds: list[float], goal: int) -> Result:
    median = statistics.median(seconds)
    return Result("start", case, metric, median, "s", goal=f"<= {goal} s", met=median <= goal, repeats=len(seconds))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


if __name__ == "__main__":
    main()
