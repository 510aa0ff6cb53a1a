"""What is charged when, and what is given back [VTC 4.1; P1, P16-P18]. Amounts in micro-units."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from lorafleet_runtime.core.fairness.cost import MICRO, Cost, Linear, Piecewise, Quadratic, kv_time
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.limits import Limits
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.scheduler import Scheduler
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_sim.workloads import small
from tests.runtime.core.fairness.kit import drive, engine, for_seeds, lifts_of, sequence

COSTS: list[Cost] = [
    Linear(),
    Quadratic(210_019, 100_754, 3_987, 3_247, 1_146_015),
    kv_time(MICRO, 2 * MICRO, 1000),
    Piecewise(((8, 8 * MICRO), (64, 20 * MICRO)), ((4, 9 * MICRO), (40, 100 * MICRO))),
]


def charged(queue: FairQueue, tenant: str = "a") -> int:
    return queue.order.meter.counter(tenant)


class Predicts:
    """Whatever comes to mind, never below 0."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def expected(self, sequence: Sequence) -> int:
        return self._rng.choice((0, 1, self._rng.randint(0, 50), 1000))

    def learn(self, sequence: Sequence) -> None:
        pass


def scheduler(rng: random.Random, queue: FairQueue) -> Scheduler:
    """One that chunks prompts and preempts."""
    return Scheduler(Room(12, 128), Limits(128, rng.randint(1, 6), rng.randint(4, 40)), queue)


@for_seeds()
def test_a_counter_is_the_cost_of_what_was_admitted_over_the_weight(seed: int) -> None:
    """P1: exactly, at every step, for a client that was never lifted."""
    load = small(seed, steps=20, weights=True)
    run = engine(load.pool)
    lifted: set[str] = set()
    seen = [0]

    def check() -> None:
        if lifts_of(run) > seen[0]:
            seen[0] = lifts_of(run)
            lifted.add(run.jobs[-1].request.client)
        owed: dict[str, int] = {}
        weights: dict[str, int] = {}
        for job in run.jobs:
            weights[job.request.client] = int(job.request.weight)
            if job.admitted is not None:
                cost = Linear().of(job.request.prompt, job.sequence.output_len)
                owed[job.request.client] = owed.get(job.request.client, 0) + cost
        for client in owed.keys() - lifted:
            assert charged(run.queue, client) == owed[client] // weights[client]

    drive(run, load.requests, check)


@for_seeds(st.sampled_from(COSTS))
def test_chunks_preemptions_and_aborts_leave_the_cost_of_what_was_executed(seed: int, cost: Cost) -> None:
    """P16 and P17, in the scheduler that serves: whatever was expected and however a request ends, its tenant has paid
    h(prompt tokens computed, output tokens)."""
    rng = random.Random(seed)
    queue = FairQueue(cost=cost, predictor=Predicts(rng) if rng.random() < 0.5 else None)
    serving = scheduler(rng, queue)
    sequences = [sequence("a", rng.randint(1, 90), rng.randint(1, 30), arrival=i) for i in range(8)]
    coming = list(sequences)
    while coming or serving.has_work:
        if coming and rng.random() < 0.5:
            serving.add(coming.pop())
        if rng.random() < 0.1:
            serving.abort(rng.choice(sequences).request_id)
        batch = serving.schedule()
        if batch is not None:
            serving.commit(batch, [0] * sum(row.samples for row in batch.rows))

    for each in sequences:
        executed = cost.of(each.prefilled, each.output_len, each.cached) if each.prefilled else 0
        assert each.charged == executed
        assert each.finish_reason == "abort" or each.prefilled == each.prompt_len
    assert queue.tallies["a"].service == charged(queue) == sum(each.charged for each in sequences)
    assert (queue.tallies["a"].running, queue.tallies["a"].waiting, queue.tallies["a"].in_flight) == (0, 0, 0)


@for_seeds(st.sampled_from(COSTS), st.integers(0, 30), st.integers(1, 30))
def test_what_a_resumed_request_came_with_is_not_charged_again(_: int, cost: Cost, had: int, more: int) -> None:
    """Nor given back when it is aborted before it has run."""
    for cancelled in (False, True):
        queue = FairQueue(cost=cost)
        resumed = sequence("a", 20, had + more)
        resumed.tokens += [0] * had
        queue.add(resumed)
        if cancelled:
            queue.cancel(resumed)
            assert charged(queue) == 0
            continue
        queue.admit(resumed)
        queue.ran(resumed, 0, len(resumed.tokens), made=0)
        for _ in range(more):
            resumed.tokens.append(0)
            queue.ran(resumed, len(resumed.tokens) - 2, 1, made=1)
        queue.leave(resumed)
        before = cost.of(20, had) if had else 0
        assert charged(queue) == cost.of(20, had + more) - before


@for_seeds(
    st.sampled_from(COSTS), st.integers(1, 60), st.integers(0, 60), st.integers(0, 60), st.sampled_from([1.0, 3.0])
)
def test_cached_tokens_cost_their_own_weight_and_an_abort_gives_back_the_rest(
    seed: int, cost: Cost, prompt: int, cached: int, executed: int, weight: float
) -> None:
    """P18: with nothing cached it is the plain cost; P17 in the middle of a prompt."""
    cached, executed = min(cached, prompt - 1), min(executed, prompt)
    queue = FairQueue(cost=cost)
    one = sequence("a", prompt, 5, weight=weight)
    one.cached = cached
    queue.add(one)
    queue.admit(one)
    assert one.charged == cost.of(prompt, 0, cached)
    assert cached or one.charged == cost.of(prompt, 0)

    if executed > cached:
        queue.ran(one, cached, executed - cached, made=0)
    one.finish_reason = "abort"
    queue.leave(one)

    kept = cost.of(executed, 0, cached) if executed > cached else 0
    assert one.charged == kept
    # A charge and its refund are divided, and rounded down, each by itself.
    assert abs(charged(queue) - kept / weight) <= 1


@for_seeds(st.integers(2, 5), st.integers(1, 4))
def test_every_choice_and_every_accepted_token_is_charged(seed: int, choices: int, accepted: int) -> None:
    """n > 1: each choice is a sequence. A step that makes several tokens charges those that were accepted."""
    queue = FairQueue()
    for arrival in range(choices):
        one = sequence("a", 10, 100, arrival=arrival)
        queue.add(one)
        queue.admit(one)
        one.tokens.append(0)
        queue.ran(one, 0, 10, made=1)
        one.tokens += [0] * accepted
        queue.ran(one, 10, 1 + accepted, made=accepted)
        queue.leave(one)

    assert charged(queue) == choices * Linear().of(10, 1 + accepted)
    assert queue.tallies["a"].output_tokens == choices * (1 + accepted)


def test_a_charge_smaller_than_the_weight_is_booked_once_it_adds_up() -> None:
    queue = FairQueue(cost=Linear(input=0, output=1))
    one = sequence("a", 1, 10, weight=4.0)
    queue.add(one)
    queue.admit(one)
    for made in range(1, 9):
        one.tokens.append(0)
        queue.ran(one, made, 1, made=1)
        assert charged(queue) == made // 4
