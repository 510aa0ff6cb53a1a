"""The bound that the queue reports, in the scheduler that serves: nothing reserved, chunks, preemption [VTC 4.1]."""

from __future__ import annotations

import random

from lorafleet_runtime.core.fairness.cost import MICRO, Linear
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.limits import Limits
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.scheduler import Scheduler
from lorafleet_sim.fairness_metrics import Gaps
from tests.runtime.core.fairness.kit import for_seeds, sequence


@for_seeds()
def test_waiting_tenants_never_drift_further_apart_than_the_queue_says(seed: int) -> None:
    """Counters by U, service by 2U, with U the greatest cost of one tenant's admitted requests at once; at every step,
    though requests are preempted and reserve nothing."""
    rng = random.Random(seed)
    room = Room(rng.choice((10, 16, 24)), 128, prefix_caching=False)
    queue = FairQueue()
    scheduler = Scheduler(room, Limits(128, rng.choice((3, 8)), rng.choice((16, 64))), queue)
    tenants = "abc"[: rng.randint(2, 3)]
    shape = {tenant: (rng.choice((4, 40)), rng.choice((4, 60)), rng.choice((0.1, 0.5, 2.0))) for tenant in tenants}
    served = dict.fromkeys(tenants, 0)
    gaps = Gaps()
    arrival = 0
    for step in range(70):
        for tenant, (prompt, output, rate) in shape.items():
            for _ in range(round(rate + rng.random() - 0.5) if step < 50 else 0):
                scheduler.add(sequence(tenant, rng.randint(1, prompt), rng.randint(1, output), arrival=arrival))
                arrival += 1
        batch = scheduler.schedule()
        if batch is None:
            continue
        before = {row.sequence.request_id: row.sequence.prefilled for row in batch.rows}
        results = scheduler.commit(batch, [0] * sum(row.samples for row in batch.rows))
        for row in batch.rows:
            computed = row.sequence.prefilled - before[row.sequence.request_id]
            served[row.sequence.tenant] += Linear().of(computed, 0)
        for done, _ in results:
            served[done.tenant] += Linear().of(0, 1)
        waiting = {tenant for tenant, tally in queue.tallies.items() if tally.waiting}
        gaps.see(served, waiting)
        counters = [queue.order.meter.counter(tenant) for tenant in waiting]
        if counters:
            assert max(counters) - min(counters) <= queue.bound / 2
        assert gaps.worst <= queue.bound


def test_a_preempted_request_brings_no_credit_for_what_others_got_meanwhile() -> None:
    """Who ran one long answer while others were served many short ones waits again, and so do its next requests."""
    queue = FairQueue()
    long = sequence("long", 10, 1000)
    queue.add(long)
    queue.admit(long)
    for arrival in range(1, 41):
        other = sequence("short", 100, 1, arrival=arrival)
        queue.add(other)
        queue.admit(other)
        other.tokens.append(0)
        queue.ran(other, 0, 100, made=1)
        queue.leave(other)
    queue.add(sequence("short", 100, 1, arrival=41))
    floor = queue.order.meter.counter("short")

    queue.put_back(long)

    assert queue.head() is long, "its tenant is not ahead of the other, and it came first"
    assert queue.order.meter.counter("long") == floor == (10 + 40 * 102) * MICRO
