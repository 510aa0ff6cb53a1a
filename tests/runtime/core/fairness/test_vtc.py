"""VTC as the admission queue: who goes next, what is charged, and how far two waiting tenants can drift apart."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from lorafleet_runtime.core.fairness.cost import MICRO
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.limits import Limits
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.scheduler import Scheduler
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.protocol import Sampling


def sequence(tenant: str, prompt: int = 10, *, weight: float = 1.0, arrival: int = 0, output: int = 4) -> Sequence:
    name = f"{tenant}{arrival}"
    return Sequence(name, [1] * prompt, prompt, Sampling(max_tokens=output), None, tenant, weight, arrival=arrival)


def names(queue: FairQueue, count: int) -> list[str]:
    """Admit that many and say of whom."""
    admitted = []
    for _ in range(count):
        head = queue.head()
        assert head is not None
        queue.admit(head)
        admitted.append(head.tenant)
    return admitted


def test_tenants_take_turns_however_many_requests_one_has() -> None:
    queue = FairQueue()
    for arrival in range(6):
        queue.add(sequence("flood", arrival=arrival))
    for arrival in range(6, 8):
        queue.add(sequence("light", arrival=arrival))

    assert names(queue, 6) == ["flood", "light", "flood", "light", "flood", "flood"]


def test_a_weight_of_two_gets_two_turns_for_one() -> None:
    queue = FairQueue()
    for arrival in range(20):
        queue.add(sequence("heavy", weight=2.0, arrival=2 * arrival))
        queue.add(sequence("plain", arrival=2 * arrival + 1))

    taken = names(queue, 18)

    assert abs(taken.count("heavy") - 2 * taken.count("plain")) <= 2


def test_a_tenant_that_was_away_has_saved_up_nothing() -> None:
    queue = FairQueue()
    for arrival in range(10):
        queue.add(sequence("busy", arrival=arrival))
    names(queue, 8)

    queue.add(sequence("late", arrival=10))

    assert queue.order.meter.counter("late") == queue.order.meter.counter("busy") == 80 * MICRO


def test_a_tenant_that_comes_back_to_an_empty_queue_is_lifted_to_the_last_that_left() -> None:
    queue = FairQueue()
    queue.add(sequence("a", prompt=50))
    names(queue, 1)

    queue.add(sequence("b", arrival=1))

    assert queue.order.meter.counter("b") == 50 * MICRO


def test_a_lift_never_forgives() -> None:
    queue = FairQueue()
    queue.add(sequence("debtor", prompt=500))
    names(queue, 1)
    queue.add(sequence("other", prompt=1, arrival=1))

    queue.add(sequence("debtor", arrival=2))

    assert queue.order.meter.counter("debtor") == 500 * MICRO


def test_what_is_computed_again_after_a_preemption_is_not_charged_again() -> None:
    queue = FairQueue()
    preempted = sequence("a", prompt=30)
    queue.add(preempted)
    names(queue, 1)
    queue.add(sequence("a", arrival=1))

    queue.put_back(preempted)

    assert queue.head() is preempted
    names(queue, 1)
    assert queue.order.meter.counter("a") == 30 * MICRO


@settings(max_examples=50)
@given(st.integers(0, 2**32))
def test_two_waiting_tenants_never_drift_further_apart_than_the_bound(seed: int) -> None:
    """Theorem 4.4: |W_f - W_g| <= 2 max(w_p L_input, w_q M) for tenants that wait throughout."""
    rng = random.Random(seed)
    scheduler = Scheduler(Room(24, 160, prefix_caching=False), Limits(160, 8, 64))
    longest, tokens_in_pool = 60, 24 * 16
    for arrival in range(400):
        scheduler.add(sequence(rng.choice("fg") if arrival > 100 else "fg"[arrival % 2], rng.randint(1, longest),
                               arrival=arrival, output=rng.randint(1, 60)))  # fmt: skip
    served = {"f": 0, "g": 0}
    for _ in range(400):
        batch = scheduler.schedule()
        assert batch is not None
        fresh = {r.sequence.request_id: r.sequence for r in batch.rows if not r.start and not r.sequence.output_len}
        for row in fresh.values():
            served[row.tenant] += row.prompt_len
        samples = [7] * sum(row.samples for row in batch.rows)
        for done, _ in scheduler.commit(batch, samples):
            served[done.tenant] += 2
        waiting = {s.tenant for s in scheduler.queued()}
        if waiting != {"f", "g"}:
            return
        assert abs(served["f"] - served["g"]) <= 2 * max(longest, 2 * tokens_in_pool)
