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
from typing import Any

import httpx
import psutil
import pytest

from lorafleet_runtime.model.tiny import random_adapter, save_adapter, save_tiny_model, tiny_config
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
    save_adapter(folder / "alpha", random_adapter(tiny_config(), rank=4, seed=3))
    save_tiny_model(folder / "model", tiny_config())
    return save_tiny_tokenizer(folder / "model")


@contextlib.contextmanager
def running(model: Path, folder: Path) -> Iterator[Replica]:
    """A replica with one adapter, from its start on."""
    log = folder / "log"
    command = [
        sys.executable, "-m", "lorafleet_runtime", "serve", "--model", str(model), "--served-name", "tiny",
        "--port", "0", "--admin-port", "0", "--dtype", "float32", "--memory", "64Mi", "--log-format", "json",
        "--threads", "1", "--exit-with-parent", "--adapter", f"alpha={model.parent / 'alpha'}",
    ]  # fmt: skip
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=sink)
    yield Replica(process, log)
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


@pytest.fixture
def replica(model: Path, tmp_path: Path) -> Iterator[Replica]:
    """One that serves, its adapter included."""
    with running(model, tmp_path) as replica:
        wait_until(lambda: replica.process.poll() is not None or '"ready"' in replica.log.read_text())
        wait_until(lambda: replica.process.poll() is not None or serves_again(replica))
        yield replica


def stream_from(replica: Replica) -> Iterator[str]:
    """Lines of a stream that has begun."""
    with httpx.stream(
        "POST", replica.address("serving") + "/v1/completions", json=LONG | {"stream": True}, timeout=60
    ) as response:
        yield from (line for line in response.iter_lines() if line)


def ask(replica: Replica, model: str = "tiny") -> httpx.Response:
    body = LONG | {"model": model, "max_tokens": 8}
    return httpx.post(replica.address("serving") + "/v1/completions", json=body, timeout=60)


def state(replica: Replica) -> dict[str, Any]:
    body: dict[str, Any] = httpx.get(replica.address("admin") + "/admin/state").json()
    return body


def serves_again(replica: Replica) -> bool:
    now = state(replica)
    return now["phase"] == "Ready" and [a["state"] for a in now["adapters"]] == ["Ready"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_an_engine_that_dies_or_hangs_is_replaced_and_nobody_waits_for_it(
    replica: Replica, number: signal.Signals
) -> None:
    before, answers = state(replica), [ask(replica, model).json() for model in ("tiny", "alpha")]
    lines, engine = stream_from(replica), replica.engine
    next(lines)
    engine.send_signal(number)
    rest = list(lines)
    at_once = ask(replica)
    loading = state(replica)

    assert '"engine_failed"' in rest[-1]
    assert (at_once.status_code, at_once.headers["retry-after"]) == (503, "1")
    assert ("SIGKILL" if number == signal.SIGKILL else "no sign of life") in at_once.json()["error"]["message"]
    assert loading["phase"] == "Loading"
    assert [(a["id"], a["state"]) for a in loading["adapters"]] == [("alpha", "Loading")]
    wait_until(lambda: serves_again(replica))
    assert not engine.is_running()
    assert replica.process.poll() is None
    assert before["incarnation"] != state(replica)["incarnation"]
    assert [a["revision"] for a in before["adapters"]] == [a["revision"] for a in state(replica)["adapters"]]
    again = [ask(replica, model).json() for model in ("tiny", "alpha")]
    assert [a["choices"] for a in again] == [a["choices"] for a in answers]


def test_an_engine_that_never_was_ready_ends_the_process_with_1(model: Path, tmp_path: Path) -> None:
    """A wrong model would be wrong again: whoever started this replica is told at once."""
    with running(model, tmp_path) as replica:
        wait_until(lambda: bool(psutil.Process(replica.process.pid).children()))
        replica.engine.kill()
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
