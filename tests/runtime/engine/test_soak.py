"""The soak of `bench.soak` in short: nothing leaks, no count drifts, nobody waits in vain; and it was hard."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.soak_targets import CoreTarget, EngineTarget
from bench.soak_traffic import live


@pytest.mark.parametrize("seed", [1, 2])
def test_the_scheduler_and_the_pool_leak_nothing(seed: int) -> None:
    target = CoreTarget()
    life = live(target, 2000, seed)

    assert life.broken is None
    assert life.ended + life.aborted == life.asked == 2000
    assert min(target.hardships().values()) > 0, target.hardships()


def test_the_engine_leaks_nothing(tmp_path: Path) -> None:
    target = EngineTarget(tmp_path, adapters=24)
    try:
        life = live(target, 500, seed=3)
        assert life.broken is None
        assert life.ended + life.aborted == life.asked == 500
        assert min(target.hardships().values()) > 0, target.hardships()
    finally:
        target.close()


class Leaky(CoreTarget):
    """Forgets, once in a while, that a sequence has given its adapter back."""

    def abort(self, name: str) -> None:
        sequence = self._scheduler.abort(name)
        if sequence is not None and sequence.adapter is not None:
            sequence.adapter.users += 1


class Stuck(CoreTarget):
    """Stops stepping after a while, as an engine would that lost a wake-up."""

    def step(self) -> list[str]:
        return super().step() if self._scheduler.preemptions < 3 else []


@pytest.mark.parametrize(("target", "says"), [(Leaky(), "users, there are"), (Stuck(), "wait in vain")])
def test_what_leaks_or_hangs_is_found(target: CoreTarget, says: str) -> None:
    life = live(target, 2000, seed=1)

    assert life.broken is not None
    assert any(says in problem for problem in life.broken[1])
