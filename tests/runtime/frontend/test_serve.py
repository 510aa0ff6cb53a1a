from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from lorafleet_runtime.model.tiny import save_tiny_model, tiny_config
from lorafleet_runtime.model.tiny_tokenizer import save_tiny_tokenizer

pytestmark = pytest.mark.slow

LONG = {"model": "tiny", "prompt": "x", "max_tokens": 400, "ignore_eos": True, "temperature": 0}


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


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model(folder, tiny_config())
    return save_tiny_tokenizer(folder)


@pytest.fixture
def replica(model: Path, tmp_path: Path) -> Iterator[Replica]:
    log = tmp_path / "log"
    command = [
        sys.executable, "-m", "lorafleet_runtime", "serve", "--model", str(model), "--served-name", "tiny",
        "--port", "0", "--admin-port", "0", "--dtype", "float32", "--memory", "64Mi", "--log-format", "json",
        "--threads", "1", "--exit-with-parent",
    ]  # fmt: skip
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=sink)
    replica = Replica(process, log)
    wait_until(lambda: '"ready"' in log.read_text() or process.poll() is not None)
    yield replica
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def stream_from(replica: Replica) -> Iterator[str]:
    """Lines of a stream that has begun."""
    with httpx.stream(
        "POST", replica.address("serving") + "/v1/completions", json=LONG | {"stream": True}, timeout=60
    ) as response:
        yield from (line for line in response.iter_lines() if line)


def test_a_killed_engine_ends_streams_with_an_error_and_the_process_with_1(replica: Replica) -> None:
    lines = stream_from(replica)
    next(lines)
    replica.engine.kill()
    rest = list(lines)

    assert '"engine_failed"' in rest[-1]
    assert replica.process.wait(10) == 1


def test_sigterm_lets_running_requests_finish(replica: Replica) -> None:
    lines = stream_from(replica)
    next(lines)
    replica.process.send_signal(signal.SIGTERM)
    rest = list(lines)

    assert rest[-1] == "data: [DONE]"
    assert replica.process.wait(10) == 0


@pytest.mark.parametrize("killed", ["parent", "front end"])
def test_nothing_is_left_when_a_parent_is_killed(replica: Replica, killed: str) -> None:
    """The parent's end closes the front end's standard input; the front end's end closes the engine's."""
    engine = replica.engine
    if killed == "parent":
        assert replica.process.stdin is not None
        replica.process.stdin.close()
    else:
        os.kill(replica.process.pid, signal.SIGKILL)
    replica.process.wait(10)

    wait_until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 10)
