from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.runtime.frontend.replica_process import LONG, Replica, ask, ended, running, save_model, state, wait_until

pytestmark = pytest.mark.slow

@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def replica(model: Path, tmp_path: Path) -> Iterator[Replica]:
    """One that serves, its adapter included."""
    with running(model, tmp_path) as replica:
        wait_until(lambda: replica.process.poll() is not None or '"ready"' in replica.log.read_text())
        wait_until(lambda: replica.process.poll() is not None or serves_again(replica))
        yield replica


@pytest.fixture
def ranked(model: Path, tmp_path: Path) -> Iterator[Replica]:
    """One of two ranks."""
    with running(model, tmp_path, "--tensor-parallel", "2") as replica:
        wait_until(lambda: replica.process.poll() is not None or '"ready"' in replica.log.read_text())
        wait_until(lambda: replica.process.poll() is not None or serves_again(replica))
        yield replica


def stream_from(replica: Replica) -> Iterator[str]:
    """Lines of a stream that has begun."""
    with httpx.stream(
        "POST", replica.address("serving") + "/v1/completions", json=LONG | {"stream": True}, timeout=60
    ) as response:
        yield from (line for line in response.iter_lines() if line)


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

    wait_until(lambda: ended(engine), 10)


def test_a_killed_rank_ends_streams_with_an_error_that_names_it_and_all_ranks_are_replaced(ranked: Replica) -> None:
    engine, rank = ranked.engine, ranked.rank
    lines = stream_from(ranked)
    next(lines)
    rank.kill()
    rest = list(lines)

    assert '"engine_failed"' in rest[-1]
    assert "rank 1 of 2 ended by SIGKILL" in rest[-1]
    wait_until(lambda: ended(engine) and serves_again(ranked), 120)
    assert ranked.rank.pid != rank.pid
    assert ask(ranked, "alpha").status_code == 200


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

    wait_until(lambda: ended(engine) and ended(rank), 10)
    assert killed == "engine" or ranked.process.wait(10) is not None
