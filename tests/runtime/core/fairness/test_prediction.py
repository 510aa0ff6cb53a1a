"""Expected lengths: what they change, and what they may not [VTC 4.4]."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from lorafleet_runtime.core.fairness.cost import Linear
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.fairness.prediction import MovingAverage
from lorafleet_sim.fairness_metrics import Gaps
from lorafleet_sim.fairness_policies import Foretold
from lorafleet_sim.workloads import small
from tests.runtime.core.fairness.kit import bound_of, drive, engine, for_seeds, sequence

PREDICTING = ("vtc-predict", "vtc-oracle", "vtc-50")


def answer(queue: FairQueue, tokens: int, arrival: int, reason: str = "stop") -> None:
    """A request of `a` that is answered with that many tokens."""
    one = sequence("a", 10, 500, arrival=arrival)
    queue.add(one)
    queue.admit(one)
    for made in range(tokens):
        one.tokens.append(0)
        queue.ran(one, 9 + made, 1, made=1)
    one.finish_reason = reason  # type: ignore[assignment]
    queue.leave(one)


@for_seeds(st.sampled_from(PREDICTING))
def test_whatever_is_expected_the_end_is_paid_as_it_was(seed: int, policy: str) -> None:
    """P16, over whole runs."""
    load = small(seed)
    run = engine(load.pool, policy)
    run.run(load.requests)

    for client in range(load.clients):
        mine = [job.request for job in run.jobs if job.request.client == f"{client}"]
        due = sum(Linear().of(request.prompt, request.output) for request in mine)
        assert not mine or run.queue.tallies[f"{client}"].service == due


@for_seeds(st.sampled_from(PREDICTING))
def test_two_waiting_clients_stay_within_the_bound(seed: int, policy: str) -> None:
    """2U*, also where expectations err; then it is an observation, not a theorem."""
    load = small(seed)
    run, gaps = engine(load.pool, policy), Gaps()
    drive(run, load.requests, lambda: gaps.see(run.served, run.backlogged))

    assert gaps.worst <= 2 * bound_of(load.pool, load.longest)


def test_the_mean_moves_by_a_fifth_and_an_abort_teaches_nothing() -> None:
    queue = FairQueue(predictor=MovingAverage())
    expected = queue._predictor.expected if queue._predictor else None
    assert expected is not None and expected(sequence("a")) == 0

    answer(queue, 100, 0)
    assert expected(sequence("a", output=500)) == 100
    answer(queue, 50, 1)
    assert expected(sequence("a", output=500)) == 90
    answer(queue, 1, 2, reason="abort")
    assert expected(sequence("a", output=500)) == 90


def test_no_more_is_expected_than_a_request_may_be_answered_with() -> None:
    queue = FairQueue(predictor=MovingAverage())
    answer(queue, 100, 0)
    before = queue.order.meter.counter("a")
    short = sequence("a", 10, 3, arrival=1)

    queue.add(short)
    queue.admit(short)

    assert queue.order.meter.counter("a") - before == Linear().of(10, 3)


@pytest.mark.parametrize("error", [0.0, 0.5])
def test_what_is_foretold_is_within_its_error(error: float) -> None:
    told = [Foretold(error).expected(sequence("a", output=100, arrival=arrival)) for arrival in range(200)]

    assert 100 * (1 - error) <= min(told) <= max(told) <= 100 * (1 + error)
    assert error == 0 or max(told) - min(told) > 80
