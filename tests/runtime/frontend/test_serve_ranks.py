"""A replica of two ranks as real processes: one of them dies, or a parent does."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.runtime.frontend.replica_process import (
    Replica,
    ask,
    ended,
    running,
    save_model,
    serves,
    stream_from,
    wait_until,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def replica(model: Path, tmp_path: Path) -> Iterator[Replica]:
    with running(model, tmp_path, "--tensor-parallel", "2") as replica:
        wait_until(lambda: replica.process.poll() is not None or '"ready"' in replica.log.read_text(), 120)
        wait_until(lambda: replica.process.poll() is not None or serves(replica))
        yield replica


def test_a_killed_rank_ends_streams_with_its_name_and_all_ranks_come_back(replica: Replica) -> None:
    answers = [ask(replica, model).json()["choices"] for model in ("tiny", "alpha")]
    engine, rank, lines = replica.engine, replica.rank, stream_from(replica)
    next(lines)
    rank.kill()
    rest = list(lines)
    at_once = ask(replica)

    assert '"engine_failed"' in rest[-1]
    assert "rank 1 of 2 ended by SIGKILL" in rest[-1]
    assert at_once.status_code == 503
    assert "rank 1 of 2 ended by SIGKILL" in at_once.json()["error"]["message"]
    wait_until(lambda: serves(replica), 120)
    assert ended(engine)
    assert replica.rank.pid != rank.pid
    assert [ask(replica, model).json()["choices"] for model in ("tiny", "alpha")] == answers


@pytest.mark.parametrize("killed", ["parent", "front end", "engine"])
def test_no_rank_is_left_when_a_parent_is_killed(replica: Replica, killed: str) -> None:
    engine, rank = replica.engine, replica.rank
    lines = stream_from(replica)
    next(lines)  # the ranks are at work
    if killed == "parent":
        assert replica.process.stdin is not None
        replica.process.stdin.close()
    else:
        os.kill(replica.process.pid if killed == "front end" else engine.pid, signal.SIGKILL)
    with contextlib.suppress(httpx.HTTPError):
        list(lines)

    wait_until(lambda: ended(engine) and ended(rank), 10)
    assert killed == "engine" or replica.process.wait(10) is not None
