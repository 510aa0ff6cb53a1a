"""What must fail: if these did not, the properties would see nothing [P22]."""

from __future__ import annotations

import random
from collections.abc import Callable

from lorafleet_runtime.core.fairness.counters import CounterTable
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.fairness.vtc import Vtc
from lorafleet_sim.fairness_metrics import Gaps
from lorafleet_sim.fairness_policies import queue_for
from lorafleet_sim.replicated import MakeTable
from lorafleet_sim.workloads import small, unweighted
from tests.runtime.core.fairness.comeback import comeback
from tests.runtime.core.fairness.kit import bound_of, drive, engine, spread
from tests.runtime.core.fairness.replicas import gap_over_bound

SEEDS = range(60)


class ArtifactLift(Vtc):
    """The code published with the paper: no lift when nobody waits."""

    def floor(self) -> int:
        return super().floor() if self.backlogged else 0


class AdditiveTable(CounterTable):
    """Lifts are booked like service, so that two replicas that lift one tenant at once charge it twice."""

    def lift(self, tenant: str, floor: int) -> bool:
        missing = floor - self.counter(tenant)
        self.spend(tenant, max(0, missing))
        return missing > 0


def banks_credit(queue: Callable[[], FairQueue]) -> int:
    """On how many of the seeds a client that was away gets more than it may."""
    outcomes = [comeback(queue(), seed) for seed in SEEDS]
    return sum(share > allowed for share, allowed in outcomes)


def test_without_lifts_idling_saves_up_credit() -> None:
    """P22: LCF fails P9."""
    assert banks_credit(lambda: queue_for("lcf")) > 0
    assert banks_credit(lambda: queue_for("vtc")) == 0


def test_the_published_lift_lets_a_newcomer_to_an_empty_queue_take_all() -> None:
    """P22: the artifact's lift fails P9."""
    assert banks_credit(lambda: FairQueue(ArtifactLift())) > 0


def test_first_come_first_served_breaks_the_bound_of_two_waiting_clients() -> None:
    broken = 0
    for seed in SEEDS:
        load = small(seed)
        run, gaps = engine(load.pool, "fcfs"), Gaps()
        drive(run, unweighted(load.requests), lambda run=run, gaps=gaps: gaps.see(run.served, run.backlogged))  # type: ignore[misc]
        broken += gaps.worst > 2 * bound_of(load.pool, load.longest)
    assert broken > 0


def test_without_lifts_counters_of_waiting_clients_drift_apart() -> None:
    worst = []
    for seed in SEEDS:
        load = small(seed)
        run = engine(load.pool, "lcf")
        spreads = [0]
        drive(run, unweighted(load.requests), lambda run=run, spreads=spreads: spreads.append(spread(run)))  # type: ignore[misc]
        worst.append(max(spreads) / bound_of(load.pool, load.longest))
    assert max(worst) > 1


def test_adding_lifts_up_breaks_the_bound_that_merging_them_by_maximum_keeps() -> None:
    """Concurrent lifts count twice, and the fleet's counters run away from each other [vtc 17]."""

    def worst(table: MakeTable) -> float:
        seeds = (random.Random(seed) for seed in range(3))
        return max(gap_over_bound(rng, replicas=4, every=5, pool=16, table=table, comeback=True) for rng in seeds)

    assert worst(CounterTable) <= 1 < worst(AdditiveTable)
