"""S-LoRA's workload, loop and rules in the simulator: that they are what they are taken for."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from itertools import pairwise

import pytest

from lorafleet_runtime.core.fairness.counters import CounterTable
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.fairness.order import Fifo
from lorafleet_runtime.core.fairness.policies import EarlyAbortSpec, FairnessSpec, make_queue
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.protocol import Sampling
from lorafleet_sim.abort_baselines import SloraAbort, last_come_first_served
from lorafleet_sim.serving import Job, Timing
from lorafleet_sim.slo_metrics import outcome
from lorafleet_sim.slora_engine import GATE, SloraEngine
from lorafleet_sim.slora_workloads import A10G_S2, LONGEST, SHORTEST, Setting, gamma_arrivals, power_law, synthetic
from lorafleet_sim.workloads import Request

TINY = Setting("tiny", 1000, (8,), 4, 1.0, Timing(1.0))


def fifo() -> FairQueue:
    return FairQueue(Fifo())


def sequence(arrival: int, at: float) -> Sequence:
    return Sequence(f"{arrival}", [1] * 10, 10, Sampling(max_tokens=4), None, arrival=arrival, arrived=at)


@pytest.mark.parametrize("cv", [1, 2, 4])
def test_arrivals_have_the_rate_and_the_burstiness_that_were_asked_for(cv: float) -> None:
    times = list(gamma_arrivals(random.Random(1), 2.0, cv, 100_000))
    distances = [later - earlier for earlier, later in pairwise(times)]

    assert statistics.fmean(distances) == pytest.approx(0.5, rel=0.05)
    assert statistics.pstdev(distances) / statistics.fmean(distances) == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize(("alpha", "top", "ten"), [(1.0, 0.005, 0.05), (0.3, 0.20, 0.41), (0.1, 0.59, 0.74)])
def test_popularity_follows_the_power_law(alpha: float, top: float, ten: float) -> None:
    """The shares that the artifact's generator gives the first of 200, and the first ten."""
    rng = random.Random(1)
    found = [power_law(rng, alpha, 200) for _ in range(50_000)]

    assert sum(index == 0 for index in found) / 50_000 == pytest.approx(top, abs=0.01)
    assert sum(index < 10 for index in found) / 50_000 == pytest.approx(ten, abs=0.01)
    assert max(found) <= 199


def test_a_workload_is_the_same_for_the_same_seed_and_has_the_papers_lengths() -> None:
    load = synthetic(A10G_S2, cv=2, seed=3)

    assert load == synthetic(A10G_S2, cv=2, seed=3) != synthetic(A10G_S2, cv=2, seed=4)
    assert len(load.requests) == 600
    assert {request.rank for request in load.requests} == {8, 16, 32, 64}
    lengths = [length for request in load.requests for length in (request.prompt, request.output)]
    assert min(lengths) >= SHORTEST and max(lengths) <= LONGEST
    assert statistics.fmean(lengths) == pytest.approx(260, rel=0.05)


def test_admission_waits_for_the_gate_while_something_runs() -> None:
    run = SloraEngine(fifo(), TINY)
    run.run([Request("a", 0.0, 10, 40), Request("a", 0.5, 10, 4)])

    assert [job.admitted for job in run.jobs] == [0.0, 1.0 + GATE]


def test_an_adapter_takes_its_part_of_the_pool_once() -> None:
    """4 tokens for each rank: two requests of 400 fit beside one adapter of rank 16, not beside two."""
    for adapters, together in ((("one", "one"), True), (("one", "other"), False)):
        run = SloraEngine(fifo(), Setting("tiny", 900, (16,), 2, 1.0, Timing(1.0)))
        for adapter in adapters:
            run.offer(Request("a", 0.0, 300, 100, adapter=adapter, rank=16))
        run.step()
        assert (len(run.running) == 2) is together


def test_loading_adapters_and_distinct_ones_take_their_time() -> None:
    timing = Timing(1.0, per_adapter=0.25, per_load=10.0)
    run = SloraEngine(fifo(), Setting("tiny", 1000, (8,), 2, 1.0, timing))
    for adapter in ("one", "other", "one"):
        run.offer(Request("a", 0.0, 10, 3, adapter=adapter, rank=8))

    run.step()
    assert run.now == 1.0 + 2 * 0.25 + 2 * 10.0
    run.step()
    assert run.now == 2.0 + 4 * 0.25 + 2 * 10.0


def test_last_come_first_served_is_what_it_says() -> None:
    waits = last_come_first_served()
    for arrival in range(3):
        waits.add(sequence(arrival, 0.0))

    assert [s.arrival for s in waits.order.upcoming(3)] == [2, 1, 0]
    head = waits.head()
    assert head is not None and head.arrival == 2


def test_sloras_rule_gives_up_half_a_second_early_and_turns_round_under_overload() -> None:
    waits = SloraAbort(6.0)
    waits.add(sequence(0, 0.0))
    assert waits.expired(5.4) == []  # rate int(0.7·1 + 0.3·1) = 1, batch 1
    assert waits.head() is not None
    assert [s.arrival for s in waits.expired(5.5)] == [0]

    for arrival in range(1, 5):
        waits.add(sequence(arrival, 5.0))
    waits.expired(5.6)
    newest = waits.head()
    assert newest is not None and newest.arrival == 4

    waits.admit(newest)
    waits.expired(5.7)  # none came since: int(0.7·0 + 0.3·3) = 0 < 1
    oldest = waits.head()
    assert oldest is not None and oldest.arrival == 0


def test_who_was_given_up_or_late_has_not_been_served_in_time() -> None:
    """TTFT 3, 9 and none of 6 s: attained 1 of 3, satisfied 1 - (3/6)² of 3."""
    requests = [Request("a", 0.0, 1, 1)] * 3
    jobs = [Job(request, sequence(0, 0.0)) for request in requests]
    jobs[0].first_token, jobs[0].finished = 3.0, 4.0
    jobs[1].first_token, jobs[1].finished = 9.0, 10.0
    jobs[2].refused, jobs[2].finished = True, 2.0

    found = outcome(jobs, 6.0)

    assert (found.attainment, found.satisfaction, found.throughput, found.told) == (1 / 3, 0.25, 0.2, 2.0)


@pytest.mark.parametrize("cv", [1, 4, 8])
def test_early_abort_serves_at_least_as_many_in_time_as_sloras_rule(cv: float) -> None:
    """The bench has all cells; first come first served is the control."""
    early = FairnessSpec(early_abort=EarlyAbortSpec(6.0))
    attained = []
    makers: list[Callable[[], FairQueue]] = [
        lambda: make_queue(early, CounterTable("own")), lambda: SloraAbort(6.0), fifo,
    ]  # fmt: skip
    for make in makers:
        found = []
        for seed in range(3):
            run = SloraEngine(make(), A10G_S2)
            run.run(list(synthetic(A10G_S2, cv, seed, duration=150).requests))
            found.append(outcome(run.jobs, 6.0).attainment)
        attained.append(statistics.median(found))

    ours, theirs, nobodys = attained
    assert ours >= theirs > nobodys
