from __future__ import annotations

import contextlib
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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_model(folder, tiny_config())
    return save_tiny_tokenizer(folder)


@contextlib.contextmanager
def launched(model: Path, folder: Path, *options: str) -> Iterator[Replica]:
    """A replica that is ready, or has ended."""
    log = folder / "log"
    command = [
        sys.executable, "-m", "lorafleet_runtime", "serve", "--model", str(model), "--served-name", "tiny",
        "--port", "0", "--admin-port", "0", "--dtype", "float32", "--memory", "64Mi", "--log-format", "json",
        "--threads", "1", "--exit-with-parent", *options,
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


@pytest.fixture
def replica(model: Path, tmp_path: Path) -> Iterator[Replica]:
    with launched(model, tmp_path) as replica:
        yield replica


@pytest.fixture
def ranked(model: Path, tmp_path: Path) -> Iterator[Replica]:
    """A replica of two ranks."""
    with launched(model, tmp_path, "--tensor-parallel", "2") as replica:
        yield replica


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


def test_a_killed_rank_ends_streams_with_an_error_that_names_it_and_the_process_with_1(ranked: Replica) -> None:
    engine, rank = ranked.engine, ranked.rank
    lines = stream_from(ranked)
    next(lines)
    rank.kill()
    rest = list(lines)

    assert '"engine_failed"' in rest[-1]
    assert "rank 1 of 2 ended by SIGKILL" in rest[-1]
    assert ranked.process.wait(10) == 1
    wait_until(lambda: ended(engine), 10)


@pytest.mark.parametrize("killed", ["parent", "front end", "engine"])
def test_no_rank_is_left_when_a_parent_is_killed(ranked: Replica, killed: str) -> None:
    engine, rank = ranked.engine, ranked.rank
    lines = stream_from(ranked)
    next(lines)  # the ranks are at work
    if killed == "parent":
        assert ranked.process.stdin is not None
        ranked.process.stdin.close()
    else:
        os.kill(ranked.process.pid if killed == "front end" else engine.pid, signal.SIGKILL)
    with contextlib.suppress(httpx.HTTPError):
        list(lines)
    ranked.process.wait(10)

    wait_until(lambda: ended(engine) and ended(rank), 10)


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

    wait_until(lambda: ended(engine), 10)
