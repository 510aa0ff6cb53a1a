"""Rounds over replicas that come, restart, fall silent and go: totals never fall, and nothing new is no news."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from lorafleet_operator.core.identity import Ref
from lorafleet_operator.core.usage import Report, Share
from lorafleet_operator.errors import RuntimeUnreachable
from lorafleet_operator.runtime_client import RuntimeState
from lorafleet_operator.usage_reports import UsageReports

TINY = Ref("models", "tiny")
UNIT = 1_000_000


@dataclass(slots=True)
class FakeReplica:
    """A replica and its client in one; `gave` is what acme has had of this process."""

    name: str = "tiny-0"
    incarnation: str = "one"
    gave: int = 0
    phase: str = "Ready"
    away: bool = False
    asked: int = 0

    @property
    def client(self) -> FakeReplica:
        return self

    @property
    def report(self) -> RuntimeState:
        return RuntimeState(self.incarnation, self.phase)  # type: ignore[arg-type]  # a test's word

    async def tenants(self) -> Report:
        self.asked += 1
        if self.away:
            raise RuntimeUnreachable("away")
        return Report(self.incarnation, 0, {"acme": Share(self.gave * UNIT, self.gave, running=1)})


@dataclass(slots=True)
class Bench:
    replicas: list[FakeReplica] = field(default_factory=lambda: [FakeReplica()])
    tenants: set[str] = field(default_factory=lambda: {"acme"})
    changes: int = 0
    reports: UsageReports = field(init=False)

    def __post_init__(self) -> None:
        self.reports = UsageReports(
            lambda: ((TINY, r) for r in self.replicas),  # type: ignore[misc]  # all of a callee that is asked here
            lambda: self.tenants, self._changed, 60.0,
        )  # fmt: skip

    def _changed(self) -> None:
        self.changes += 1

    async def acme(self) -> tuple[int, int]:
        """Service and running requests, after a round."""
        await self.reports.ask()
        found = self.reports.known.tenants["acme"]
        return found.service, found.running


async def test_replicas_add_up_and_no_news_wake_nobody() -> None:
    bench = Bench([FakeReplica(gave=3), FakeReplica("tiny-1", "two", 4)])

    assert await bench.acme() == (7, 2)
    assert (await bench.reports.ask(), bench.changes) == (0, 1)
    bench.replicas[0].gave = 5
    assert (await bench.reports.ask(), bench.changes) == (1, 2)


async def test_a_replica_that_restarts_or_goes_takes_nothing_back() -> None:
    bench = Bench([FakeReplica(gave=3), FakeReplica("tiny-1", "two", 4)])
    await bench.acme()
    bench.replicas[0].incarnation, bench.replicas[0].gave = "three", 1

    assert await bench.acme() == (8, 2)
    bench.replicas.pop()
    assert await bench.acme() == (8, 1)
    bench.replicas.clear()
    assert await bench.acme() == (8, 0)


async def test_a_replica_that_is_silent_for_a_round_counts_as_it_was_last() -> None:
    bench = Bench([FakeReplica(gave=3)])
    await bench.acme()
    bench.replicas[0].away = True

    assert await bench.acme() == (3, 1)
    bench.replicas[0].phase = "Failed"
    assert await bench.acme() == (3, 0)
    bench.replicas[0].phase, bench.replicas[0].away, bench.replicas[0].gave = "Ready", False, 4
    assert await bench.acme() == (4, 1)


async def test_nothing_is_known_before_a_replica_has_told() -> None:
    bench = Bench([FakeReplica(phase="Loading")])

    assert await bench.reports.ask() == 0
    assert (bench.reports.known.as_of, bench.changes, bench.replicas[0].asked) == ("", 0, 0)


async def test_only_declared_tenants_are_known() -> None:
    bench = Bench(tenants={"bolt"})
    await bench.reports.ask()

    assert bench.reports.known.tenants == {}


@pytest.mark.parametrize(("active", "pause"), [(3, 60.0), (1200, 120.0)])
async def test_rounds_are_so_rare_that_few_statuses_are_written_a_second(
    active: int, pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    class Enough(Exception):
        pass

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            raise Enough

    async def ask() -> int:
        return active

    bench = Bench()
    monkeypatch.setattr(bench.reports, "ask", ask)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(Enough):
        await bench.reports.follow()

    assert slept == [5.0, pause]
