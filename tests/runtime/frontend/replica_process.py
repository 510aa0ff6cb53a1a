"""A real runtime process on a tiny model with one adapter, on free ports."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from lorafleet_runtime.model.tiny import random_adapter, save_adapter, save_tiny_model, tiny_config
from lorafleet_runtime.model.tiny_tokenizer import save_tiny_tokenizer

LONG = {"model": "tiny", "prompt": "x", "max_tokens": 400, "ignore_eos": True, "temperature": 0}


def save_model(folder: Path) -> Path:
    """The model's folder; its adapter `alpha` lies beside it."""
    save_adapter(folder / "alpha", random_adapter(tiny_config(), rank=4, seed=3))
    save_tiny_model(folder / "model", tiny_config())
    return save_tiny_tokenizer(folder / "model")


@dataclass
class Replica:
    """A real runtime: its process, and what it says about itself."""

    process: subprocess.Popen[bytes]
    log: Path

    def address(self, port: str) -> str:
        match = re.search(rf'"{port}": "(http[^"]+)"', self.log.read_text())
        assert match is not None
        return match[1]

    @property
    def engine(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        return next(c for c in children if "lorafleet_runtime.engine.process" in c.cmdline())

    @property
    def rank(self) -> psutil.Process:
        """The second of two ranks."""
        (process,) = self.engine.children()
        return process


def ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


@contextlib.contextmanager
def running(model: Path, folder: Path, *options: str) -> Iterator[Replica]:
    """A replica with one adapter, from its start on."""
    log = folder / "log"
    command = [
        sys.executable, "-m", "lorafleet_runtime", "serve", "--model", str(model), "--served-name", "tiny",
        "--port", "0", "--admin-port", "0", "--dtype", "float32", "--memory", "64Mi", "--log-format", "json",
        "--threads", "1", "--exit-with-parent", "--adapter", f"alpha={model.parent / 'alpha'}", *options,
    ]  # fmt: skip
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=sink)
    yield Replica(process, log)
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()



def serves(replica: Replica) -> bool:
    """Whether it does, its adapter included."""
    now = state(replica)
    return now["phase"] == "Ready" and [a["state"] for a in now["adapters"]] == ["Ready"]


def ask(replica: Replica, model: str = "tiny") -> httpx.Response:
    body = LONG | {"model": model, "max_tokens": 8}
    return httpx.post(replica.address("serving") + "/v1/completions", json=body, timeout=60)


def state(replica: Replica) -> dict[str, Any]:
    body: dict[str, Any] = httpx.get(replica.address("admin") + "/admin/state").json()
    return body


def stream_from(replica: Replica) -> Iterator[str]:
    """Lines of a stream that has begun."""
    with httpx.stream(
        "POST", replica.address("serving") + "/v1/completions", json=LONG | {"stream": True}, timeout=60
    ) as response:
        yield from (line for line in response.iter_lines() if line)
