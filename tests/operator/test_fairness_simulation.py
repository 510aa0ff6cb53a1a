"""The simulated engine's measures and workloads: by hand, and against what the paper's artifact counts."""

from __future__ import annotations

import statistics
from collections import Counter

import pytest

from lorafleet_sim.fairness_metrics import (
    jain,
    max_min_shares,
    percentile,
    request_rates,
    service_difference,
    service_rates,
)
from lorafleet_sim.fairness_policies import POLICIES, queue_for
from lorafleet_sim.serving import Engine, Job
from lorafleet_sim.workloads import REAL_COUNTS, SUITES, Request


def job(client: str, at: float, prompt: int, output: int, first: float, end: float) -> Job:
    """A request that was answered from `first` to `end`."""
    engine = Engine(queue_for("fcfs"), 10_000)
    done = engine.offer(Request(client, at, prompt, output))
    done.first_token, done.finished, done.sequence.finish_reason = first, end, "length"
    return done


def test_service_is_spread_evenly_from_the_first_token_to_the_last() -> None:
    jobs = [job("a", 0, 100, 100, first=20, end=80)]

    assert service_rates(jobs, 50) == {"a": 300 / 60}
    assert service_rates(jobs, 20) == {"a": 150 / 60}
    assert request_rates(jobs, 20) == {"a": 300 / 60}
    assert request_rates(jobs, 50) == {"a": 0}


def test_who_asked_for_little_is_not_wronged_by_who_got_much() -> None:
    """D = Σ min(max s - s_j, |r_j - s_j|)."""
    much, little = job("much", 50, 0, 300, 30, 90), job("little", 50, 0, 30, 30, 90)
    starved = job("starved", 50, 0, 90, 500, 600)

    assert service_difference([much, little], 60) == 0
    assert service_difference([much, little, starved], 60) == pytest.approx(180 / 60)


def test_max_min_shares_and_jains_index() -> None:
    assert max_min_shares({"a": 1, "b": 5, "c": 9}, 9) == {"a": 1, "b": 4, "c": 4}
    assert max_min_shares({"a": 1, "b": 2}, 9) == {"a": 1, "b": 2}
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([1, 0, 0, 0]) == pytest.approx(0.25)


def test_a_percentile_is_a_value_that_occurred() -> None:
    values = [float(i) for i in range(1, 101)]

    assert [percentile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]


def test_the_real_trace_has_the_artifacts_counts_and_lengths() -> None:
    requests = SUITES["real"](0).requests

    assert sorted(Counter(r.client for r in requests).values(), reverse=True) == list(REAL_COUNTS)
    assert len(requests) == 1500
    assert statistics.fmean(r.prompt for r in requests) == pytest.approx(136, rel=0.05)
    assert statistics.fmean(r.output for r in requests) == pytest.approx(256, rel=0.05)
    assert statistics.median(r.prompt for r in requests) == pytest.approx(40, abs=4)
    assert statistics.median(r.output for r in requests) == pytest.approx(211, abs=10)


@pytest.mark.parametrize("name", SUITES)
def test_a_workload_comes_by_time_and_the_same_each_time(name: str) -> None:
    made = SUITES[name](3)

    assert made == SUITES[name](3)
    assert [r.at for r in made.requests] == sorted(r.at for r in made.requests)
    assert all(0 <= r.at < made.duration and r.prompt + r.most <= 10_000 for r in made.requests)


@pytest.mark.parametrize("policy", [*POLICIES, "rpm(5)"])
def test_a_staggered_pool_is_never_overdrawn_and_all_is_served(policy: str) -> None:
    engine = Engine(queue_for(policy, pool=64), 64, staggered=True)
    held: list[int] = []
    requests = [Request(f"{i % 3}", i / 4, 1 + i % 7, 1 + i % 11) for i in range(60)]

    engine.run(requests, watch=lambda: held.append(sum(len(job.sequence.tokens) for job in engine.running)))

    assert max(held) <= 64
    assert all(job.refused or job.finished is not None for job in engine.jobs)


def test_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="none of"):
        queue_for("lottery")
