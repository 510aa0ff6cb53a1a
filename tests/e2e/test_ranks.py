"""A base model with tensorParallel 2, as users declare it: two ranks on this machine, one of which dies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e import tiny_fleet
from tests.e2e.fleet_kit import Fleet, free_port, wait_until
from tests.e2e.streams import complete

pytestmark = [pytest.mark.slow, pytest.mark.alone]

PROMPT = "Once upon a time"


@pytest.fixture
def spread(tmp_path: Path) -> Iterator[Fleet]:
    folder = tiny_fleet.write(tmp_path / "fleet")
    engine = {"dtype": "float32", "maxModelLen": tiny_fleet.CONTEXT, "memory": "32Mi", "tensorParallel": 2}
    (folder / "base.yaml").write_text(tiny_fleet.text(tiny_fleet.base_model(engine=engine)))
    fleet = Fleet(folder, tmp_path / "state", free_port(), tiny_fleet.KEYS)
    try:
        fleet.up()
        yield fleet
    finally:
        fleet.down()


def second_rank(fleet: Fleet) -> psutil.Process:
    [process] = fleet.engine.children()
    return process


def answers(fleet: Fleet) -> dict[str, list[int]]:
    """What the base model and both of acme's adapters say."""
    with fleet.client("acme") as client:
        return {model: complete(client, model, PROMPT).token_ids for model in tiny_fleet.MODELS["acme"]}


def test_two_ranks_answer_as_one_and_come_back_when_one_is_killed(tiny: Fleet, spread: Fleet) -> None:
    expected = answers(tiny)
    assert answers(spread) == expected
    [before] = spread.replicas().values()
    second_rank(spread).kill()
    wait_until(lambda: spread.replicas() and before not in spread.replicas().values(), 120, "the replica's return")
    tiny_fleet.wait_until_settled(spread)

    assert answers(spread) == expected
    assert "rank 1 of 2 ended by SIGKILL" in spread.logs()
