"""The systems of `bench.engine`, each behind one method: these requests, please. Nothing else runs meanwhile."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from bench.load_client import Ask, Outcome, asks, closed_loop
from bench.peers.peft_orders import Mode, Peft
from bench.peers.server import Server, running
from bench.start import free_port

BASE = "base"
"""What every server calls its base model."""
POOL = "1Gi"
"""For KV and adapters; vLLM gets as much for KV alone."""


class System(Protocol):
    """Something that completes requests."""

    def run(self, asked: Sequence[Ask], concurrency: int, seconds: float) -> Outcome:
        """The requests by `concurrency` clients in a closed loop, cut off after `seconds`."""
        ...


@dataclass(frozen=True, slots=True)
class Served:
    """A server, stopped except while it runs requests."""

    server: Server

    def run(self, asked: Sequence[Ask], concurrency: int, seconds: float) -> Outcome:
        self.server.resume()
        try:
            return closed_loop(self.server.url, asked, concurrency, seconds)
        finally:
            self.server.pause()


@dataclass(frozen=True, slots=True)
class Offline:
    """PEFT at one mode, dtype and thread count; it is never cut off."""

    worker: Peft
    mode: Mode
    dtype: str
    threads: int

    def run(self, asked: Sequence[Ask], concurrency: int, seconds: float) -> Outcome:
        return self.worker.generate(self.mode, self.dtype, self.threads, list(asked))


@dataclass(frozen=True, slots=True)
class Runtime:
    """Our own runtime as a process, and what it chose at start."""

    server: Server
    dtype: str
    threads: int


@contextlib.contextmanager
def runtime(model: Path, adapters: Mapping[str, Path], log: Path, *flags: str) -> Iterator[Runtime]:
    """`lorafleet-runtime serve` as a user starts it: without `flags`, dtype and threads are its own choice."""
    port, admin = free_port(), free_port()
    command = [
        sys.executable, "-m", "lorafleet_runtime", "serve", "--model", str(model), "--served-name", BASE,
        "--port", str(port), "--admin-port", str(admin), "--memory", POOL, "--log-format", "json", *flags,
    ]  # fmt: skip
    command += [f"--adapter={name}={folder}" for name, folder in adapters.items()]
    with running(command, {}, log, port, [BASE, *adapters]) as server:
        state = httpx.get(f"http://127.0.0.1:{admin}/admin/state", trust_env=False).json()
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        threads = next(int(line["threads"]) for line in lines if line["event"] == "the engine is ready")
        yield Runtime(server, str(state["model"]["dtype"]), threads)


def best_offline(worker: Peft, mode: Mode, models: Sequence[str], cores: int) -> Offline:
    """PEFT at the dtype and the thread count with which this mode is fastest here, by a short run of each."""
    asked = asks(models, 2 if mode == "single" else 8, 64, 12, seed=90)
    settings = [Offline(worker, mode, dtype, threads) for dtype in ("bfloat16", "float32") for threads in {1, cores}]
    for dtype in ("bfloat16", "float32"):
        worker.generate(mode, dtype, 1, asked[:1])  # reads the model
    return max(settings, key=lambda system: system.run(asked, len(asked), 0.0).speed)
