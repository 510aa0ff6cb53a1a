"""Deficit round robin: turns by quanta, debts that stay, credit that does not [VTC 5]."""

from __future__ import annotations

from hypothesis import strategies as st

from lorafleet_runtime.core.fairness.baselines import DeficitRoundRobin
from lorafleet_runtime.core.fairness.cost import MICRO
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_sim.fairness_metrics import Gaps
from lorafleet_sim.serving import Engine
from lorafleet_sim.workloads import small, unweighted
from tests.runtime.core.fairness.kit import bound_of, drive, for_seeds, sequence


@for_seeds(st.sampled_from([1, 8, 64]))
def test_waiting_clients_drift_apart_by_at_most_two_quanta_and_what_is_in_flight(seed: int, quantum: int) -> None:
    load = small(seed)
    run, gaps = Engine(FairQueue(DeficitRoundRobin(quantum * MICRO)), load.pool), Gaps()

    drive(run, unweighted(load.requests), lambda: gaps.see(run.served, run.backlogged))

    assert gaps.worst <= 2 * (bound_of(load.pool, load.longest) + quantum * MICRO)


@for_seeds()
def test_asking_who_is_next_changes_nothing(seed: int) -> None:
    load = small(seed)
    run = Engine(FairQueue(DeficitRoundRobin(5 * MICRO)), load.pool)

    def check() -> None:
        head = run.queue.head()
        assert run.queue.head() is head
        assert run.queue.order.upcoming(3)[:1] == ([] if head is None else [head])
        assert len(run.queue) == len(list(run.queue))

    drive(run, unweighted(load.requests), check)


def test_a_debt_costs_turns_also_after_an_absence() -> None:
    queue = FairQueue(DeficitRoundRobin(10 * MICRO))
    queue.add(sequence("debtor", prompt=45))
    first = queue.head()
    assert first is not None
    queue.admit(first)
    for arrival in range(1, 9):
        queue.add(sequence("debtor" if arrival % 2 else "other", prompt=10, arrival=arrival))

    taken = []
    while (head := queue.head()) is not None:
        queue.admit(head)
        taken.append(head.tenant)

    assert taken[:3] == ["other"] * 3


def test_who_is_charged_before_it_was_given_its_quantum_keeps_its_turn() -> None:
    """A step charges many at once: one ends its turn, and the next must not lose its own in the same step. It did, and
    by the order of a batch's rows one of two tenants got a third more."""
    queue = FairQueue(DeficitRoundRobin(10 * MICRO))
    waiting = [sequence(tenant, prompt=5, output=9, arrival=i) for i, tenant in enumerate("aaabbb")]
    for each in waiting:
        queue.add(each)
    running = []
    for tenant in "aab":
        head = queue.head()
        assert head is not None and head.tenant == tenant
        queue.admit(head)
        running.append(head)

    for each, made in ((running[2], 3), (running[0], 1)):
        each.tokens += [0] * made
        queue.ran(each, 4, made, made)

    following = queue.head()
    assert following is not None and following.tenant == "a"
