"""How far two clients can drift apart under VTC, on random workloads [VTC 4; P2-P7 and P20]."""

from __future__ import annotations

from hypothesis import strategies as st

from lorafleet_runtime.core.fairness.cost import MICRO, Linear
from lorafleet_runtime.core.fairness.counters import CounterTable
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.fairness.meter import Meter
from lorafleet_runtime.core.fairness.vtc import Vtc
from lorafleet_sim.fairness_metrics import Gaps
from lorafleet_sim.serving import Engine, Job
from lorafleet_sim.workloads import Request, small, unweighted
from tests.runtime.core.fairness.kit import bound_of, drive, engine, flood, for_seeds, spread

WEIGHTS = st.sampled_from([(1, 2), (1, 1), (5, 1), (2, 7)])


@for_seeds(WEIGHTS)
def test_waiting_clients_counters_are_never_further_apart_than_u(seed: int, weights: tuple[int, int]) -> None:
    """P2, after every arrival, admission and token: max - min <= U*, also where a prompt token costs more."""
    load = small(seed)
    cost = Linear(weights[0] * MICRO, weights[1] * MICRO)
    run = Engine(FairQueue(Vtc(Meter(CounterTable("own"))), cost), load.pool, cost=cost)
    bound = bound_of(load.pool, load.longest, *weights)

    def check() -> None:
        assert spread(run) <= bound

    drive(run, unweighted(load.requests), check)


@for_seeds()
def test_two_clients_that_both_wait_get_service_that_differs_by_at_most_2u(seed: int) -> None:
    """P3, over every part of every interval in which both wait; by the engine's account, not by the counters."""
    load = small(seed)
    run, gaps = engine(load.pool), Gaps()

    drive(run, unweighted(load.requests), lambda: gaps.see(run.served, run.backlogged))

    assert gaps.worst <= 2 * bound_of(load.pool, load.longest)


@for_seeds()
def test_over_their_weights_it_differs_by_at_most_2u_over_the_least_weight(seed: int) -> None:
    """P4."""
    load = small(seed, weights=True)
    weights = {request.client: request.weight for request in load.requests}
    run, gaps = engine(load.pool), Gaps(weights)

    drive(run, load.requests, lambda: gaps.see(run.served, run.backlogged))

    assert gaps.worst <= 2 * bound_of(load.pool, load.longest) / min(weights.values(), default=1.0)


@for_seeds()
def test_a_client_that_waits_gets_no_less_than_anybody_by_more_than_4u(seed: int) -> None:
    """P5: of others also those that do not wait."""
    load = small(seed)
    run = engine(load.pool)
    bound = 4 * bound_of(load.pool, load.longest)
    least: dict[tuple[str, str], int] = {}  # (who waits, other) -> the least lead of the other since it waits

    def check() -> None:
        waiting = run.backlogged
        for pair in [pair for pair in least if pair[0] not in waiting]:
            del least[pair]
        for client in waiting:
            for other in run.served:
                lead = run.served[other] - run.served[client]
                least[client, other] = min(lead, least.get((client, other), lead))
                assert lead - least[client, other] <= bound

    drive(run, unweighted(load.requests), check)


@for_seeds()
def test_a_fresh_client_waits_for_at_most_2u_of_service_to_each_other(seed: int) -> None:
    """P6: nothing of it waits or runs when its request comes; others get at most 2(n - 1)U* until it is admitted."""
    load = small(seed)
    run = engine(load.pool)
    bound = 2 * (load.clients - 1) * bound_of(load.pool, load.longest)
    fresh: list[tuple[Job, int]] = []  # first requests that wait, and all service when they came
    idle: set[str] = {f"{i}" for i in range(load.clients)}

    def check() -> None:
        total = sum(run.served.values())
        if run.jobs[-1].request.client in idle:
            fresh.append((run.jobs[-1], total))
        fresh[:] = [(job, before) for job, before in fresh if job.admitted is None]
        assert all(total - before <= bound for _, before in fresh)
        busy = run.backlogged | {job.request.client for job in run.running}
        idle.clear()
        idle.update({f"{i}" for i in range(load.clients)} - busy)

    drive(run, unweighted(load.requests), check)


@for_seeds()
def test_the_engine_never_idles_while_somebody_waits_and_the_least_served_is_next(seed: int) -> None:
    """P7: work conservation."""
    load = small(seed)
    run = engine(load.pool)
    counter = run.queue.order.meter.counter

    def check() -> None:
        head = run.queue.head()
        if head is None:
            return
        assert counter(head.tenant) == min(counter(client) for client in run.backlogged)
        if run.admit() or not run.running:
            following = run.queue.head()
            assert run.running
            assert following is None or not run.fits(following)

    drive(run, unweighted(load.requests), check)


@for_seeds(st.integers(16, 96))
def test_the_bound_is_nearly_reached_by_an_adversary(_: int, pool: int) -> None:
    """P20: f fills the pool with one long answer, g comes a step later: no order that cannot preempt does better than
    w_q(M - 2)."""
    run, gaps = engine(pool), Gaps()
    late = [Request("g", 1, 1, pool - 1)] * 3

    drive(run, [*flood("f", 3, 1, pool - 1), *late], lambda: gaps.see(run.served, run.backlogged))

    assert 2 * (pool - 2) * MICRO <= gaps.worst <= 2 * bound_of(pool, 1)
