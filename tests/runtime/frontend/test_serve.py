from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.runtime.frontend.replica_process import (
    Replica,
    ask,
    ended,
    running,
    save_model,
    serves,
    state,
    stream_from,
    wait_until,
)

pytestmark = pytest.mark.slow

@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def replica(model: Path, tmp_path: Path) -> Iterator[Replica]:
    """One that serves, its adapter included."""
    with running(model, tmp_path) as replica:
        wait_until(lambda: replica.process.poll() is not None or '"ready"' in replica.log.read_text())
        wait_until(lambda: replica.process.poll() is not None or serves(replica))
        yield replica


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
    wait_until(lambda: serves(replica))
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

    wait_until(lambda: ended(engine), 10)
