"""What is remembered from one pass to the next changes how long a pass takes, and nothing that it says."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from lorafleet_operator.core.actions import Plan
from lorafleet_operator.core.fleet import fleet_documents
from lorafleet_operator.core.objects import Desired, ObjectKey, Observed, Quota, Ref
from lorafleet_operator.core.remembered import Remembered
from lorafleet_operator.core.status import Status, statuses
from lorafleet_sim.fleets import adapter, base_model, desired, secret, tenant
from lorafleet_sim.world import Laws, SimWorld, run

OTHER = Ref("models", "other")
FLEET = desired(
    base_model(replicas=2), base_model(ref=OTHER), tenant(), secret(), adapter(), adapter("poet", copies_min=2),
    adapter("cook", base=OTHER), adapter("bad"),
)  # fmt: skip


def test_a_value_is_made_once_while_what_it_is_made_of_stays() -> None:
    made: list[int] = []
    remembered: Remembered[str, int] = Remembered()

    def make(part: int) -> int:
        made.append(part)
        return len(made)

    def value(part: int, after: object = None) -> int:
        return remembered.value("a", (part,), lambda: make(part), after)

    assert [value(1), value(1), value(2), value(2), value(1)] == [1, 1, 2, 2, 3]
    assert value(1, after=made) == 4  # a former value is compared by identity
    assert value(1, after=made) == 4


def test_a_key_that_is_gone_is_forgotten() -> None:
    remembered: Remembered[str, str] = Remembered()
    remembered.value("a", (), lambda: "old")
    remembered.value("b", (), lambda: "kept")
    remembered.keep({"b": None})

    assert remembered.value("a", (), lambda: "new") == "new"
    assert remembered.value("b", (), lambda: "new") == "kept"


class Twice(SimWorld):
    """Says everything twice: from what it remembers, and afresh. Users change their minds now and then."""

    told = 0

    def __init__(self, laws: Laws, seed: int) -> None:
        super().__init__(FLEET, laws, seed)
        self._statuses: Remembered[Ref, Status] = Remembered()
        self._entries: Remembered[Ref, Status] = Remembered()
        self._last: dict[ObjectKey, Status] = {}

    async def publish(self, desired: Desired, observed: Observed, plan: Plan) -> None:
        await super().publish(desired, observed, plan)
        now = f"at {self.now()}"
        fresh = statuses(desired, observed, plan, self._last, now)
        assert statuses(desired, observed, plan, self._last, now, self._statuses) == fresh
        entries = fleet_documents(desired, observed, lambda _: 1)
        assert fleet_documents(desired, observed, lambda _: 1, self._entries) == entries
        self._last = dict(fresh)
        self.told += 1
        self.desired = self._changed()

    def _changed(self) -> Desired:
        wanted = self.desired
        match self._random.randrange(12):
            case 0:  # an adapter moves to another base model, comes back, or is retrained
                base = self._random.choice(sorted(wanted.base_models))
                source = replace(adapter().source, uri=f"file:{self._random.randrange(3)}")
                moved = replace(adapter(), base=base, source=source, generation=adapter().generation + 1)
                return replace(wanted, adapters={**wanted.adapters, moved.ref: moved})
            case 1:
                return replace(wanted, adapters={r: a for r, a in wanted.adapters.items() if r.name != "pirate"})
            case 2:
                limited = tenant(quota=Quota(max_adapter_bytes=self._random.choice([1, 10**9])))
                return replace(wanted, tenants={limited.name: limited})
        return wanted


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_statuses_and_documents_are_the_same_with_and_without_what_is_remembered(seed: int) -> None:
    refused = {adapter("bad").ref: "RankTooHigh"}
    world = Twice(Laws(crash_rate=0.02, failed_starts=0.2, failed_loads=0.2, stale=0.2, refused=refused), seed)

    asyncio.run(run(world, 60))

    assert world.told > 30
