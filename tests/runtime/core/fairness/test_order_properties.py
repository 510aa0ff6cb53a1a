"""Properties of VTC's order: what changes nothing, what stays in line; everybody is served [P11-P15, P19, P21]."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

from hypothesis import strategies as st

from lorafleet_runtime.core.fairness.cost import MICRO, Linear
from lorafleet_runtime.core.fairness.counters import CounterTable
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.fairness.meter import Meter
from lorafleet_runtime.core.fairness.vtc import Vtc
from lorafleet_sim.fairness_policies import POLICIES, queue_for
from lorafleet_sim.serving import Engine
from lorafleet_sim.workloads import small, unweighted
from tests.runtime.core.fairness.kit import drive, engine, for_seeds, sequence, trace_of


@for_seeds(st.sampled_from(POLICIES))
def test_a_client_is_served_in_the_order_of_its_requests_and_the_same_way_each_time(seed: int, policy: str) -> None:
    """P11; and P19: everybody is served in the end, under every policy."""
    load = small(seed)
    runs = [engine(load.pool, policy) for _ in range(2)]
    for run in runs:
        run.run(load.requests)

    assert trace_of(runs[0]) == trace_of(runs[1])
    assert all(job.finished is not None for job in runs[0].jobs)
    for client in range(load.clients):
        mine = [job for job in runs[0].jobs if job.request.client == f"{client}"]
        admissions = [job.admitted for job in mine if job.admitted is not None]
        assert admissions == sorted(admissions)


@for_seeds(st.integers(-(10**6), 10**12))
def test_adding_a_constant_to_every_counter_changes_no_decision(seed: int, amount: int) -> None:
    """P12, in the middle of a run; taking away as much as the least counter has."""
    load = small(seed)
    plain, shifted = engine(load.pool, "weighted"), engine(load.pool, "weighted")
    plain.run(load.requests)
    table = shifted.queue.order.meter.table
    for client in range(load.clients):
        table.lift(f"{client}", 0)
    at = random.Random(seed).randint(1, 30)

    def shift() -> None:
        if shifted.steps == at:
            least = min(table.counter(tenant) for tenant in table.tenants())
            table.shift(max(amount, -least))
            shifted.queue.order.recount(list(table.tenants()))

    shifted.run(load.requests, watch=shift)

    assert trace_of(plain) == trace_of(shifted)


@for_seeds(st.integers(2, 1000))
def test_a_cost_that_is_scaled_changes_no_decision(seed: int, factor: int) -> None:
    """P13."""
    load = small(seed, weights=True)
    plain = engine(load.pool, "weighted")
    scaled = Engine(FairQueue(cost=Linear(factor * MICRO, 2 * factor * MICRO)), load.pool)
    for run in (plain, scaled):
        run.run(load.requests)

    assert trace_of(plain) == trace_of(scaled)


@for_seeds(st.sampled_from([policy for policy in POLICIES if policy != "fcfs"]))
def test_a_single_client_is_served_first_come_first_served(seed: int, policy: str) -> None:
    """P14, whatever the policy."""
    load = small(seed)
    alone = [replace(request, client="a", weight=1.0) for request in load.requests]
    runs = [engine(load.pool, name) for name in ("fcfs", policy)]
    for run in runs:
        run.run(alone)

    assert trace_of(runs[0]) == trace_of(runs[1])


@for_seeds(st.sampled_from([0.5, 2.0, 8.0]))
def test_equal_weights_are_no_weights(seed: int, weight: float) -> None:
    """P15. With a weight that divides a charge; otherwise what is a tie without weights may be off by a micro-unit."""
    load = small(seed)
    runs = [engine(load.pool), engine(load.pool)]
    runs[0].run(unweighted(load.requests))
    runs[1].run([replace(request, weight=weight) for request in load.requests])

    assert trace_of(runs[0]) == trace_of(runs[1])


@for_seeds(st.permutations([1, 2, 3, 4]))
def test_weights_of_one_to_four_are_served_in_that_proportion(seed: int, weights: list[int]) -> None:
    """P15: within 2 % and one request, when all four have more waiting than they get."""
    prompt = random.Random(seed).randint(1, 100)
    queue = FairQueue()
    served = dict.fromkeys("abcd", 0)
    waiting = [sequence(tenant, prompt, weight=float(weight)) for tenant, weight in zip("abcd", weights, strict=True)]
    for arrival in range(500):
        for each in waiting:
            each.arrival = 4 * arrival + "abcd".index(each.tenant)
            queue.add(each)
        head = queue.head()
        assert head is not None
        queue.admit(head)
        served[head.tenant] += 1
        waiting = [sequence(head.tenant, prompt, weight=head.weight)]

    for tenant, weight in zip("abcd", weights, strict=True):
        assert abs(served[tenant] - 50 * weight) <= 0.02 * 50 * weight + 1


@for_seeds()
def test_a_queue_that_is_copied_in_the_middle_goes_on_in_the_same_way(seed: int) -> None:
    """P21: the future depends on counters, who left last and what waits, and on nothing else."""
    load = small(seed)
    at = random.Random(seed).randint(1, 30)
    run = engine(load.pool)
    run.run(unweighted(load.requests), until=at)
    rest = unweighted(load.requests)[len(run.jobs) :]
    copied = copy.deepcopy(run)
    for each in (run, copied):
        each.run(rest)

    assert trace_of(run) == trace_of(copied)


@for_seeds()
def test_a_queue_that_is_built_anew_from_counters_and_waiting_requests_forgives_nothing(seed: int) -> None:
    """P21 for a replica that starts again: the counters come back from others, the requests from the gateway, one by
    one. Who comes after one that has had more is lifted to it, as any newcomer: never above the most served."""
    load = small(seed)
    run = engine(load.pool)
    run.run(unweighted(load.requests), until=random.Random(seed).randint(1, 30))
    table = CounterTable("again")
    table.merge(run.queue.order.meter.table.since(0))
    again = FairQueue(Vtc(Meter(table)))
    waiting = sorted(run.queue, key=lambda each: each.arrival)
    for each in waiting:
        again.order.add(each)

    before = {each.tenant: run.queue.order.meter.counter(each.tenant) for each in waiting}
    for tenant, counter in before.items():
        assert counter <= table.counter(tenant) <= max(before.values())


@for_seeds()
def test_weights_may_change_while_a_client_is_served_and_its_past_stays(seed: int) -> None:
    load = small(seed)
    rng = random.Random(seed)
    run = Engine(queue_for("weighted"), load.pool)
    table = run.queue.order.meter.table
    last: dict[str, int] = {}

    def check() -> None:
        for tenant in table.tenants():
            assert table.counter(tenant) >= last.get(tenant, 0)
            last[tenant] = table.counter(tenant)

    drive(run, [replace(request, weight=rng.choice((0.25, 1.0, 9.0))) for request in load.requests], check)
