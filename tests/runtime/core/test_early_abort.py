"""Whom early abort gives up, whom it lets go first, and what that leaves of everything else. Times in seconds."""

from __future__ import annotations

import json
from itertools import chain, combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_runtime.core.early_abort import EarlyAbort
from lorafleet_runtime.core.fairness.cost import MICRO, Linear
from lorafleet_runtime.core.fairness.counters import CounterTable
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.fairness.policies import make_queue, read_spec
from lorafleet_runtime.core.limits import Limits
from lorafleet_runtime.core.pace import Pace, Rate
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.scheduler import Scheduler
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.protocol import Sampling
from lorafleet_sim.serving import Engine, Timing
from lorafleet_sim.workloads import Request, small
from tests.runtime.core.fairness.kit import bound_of, drive, for_seeds, spread

TTFT = 6.0
POLICIES = ("VTC", "FCFS", "LCF", "DRR")


def judge(pace: Pace | None = None, rate: float | None = None) -> EarlyAbort:
    """One that knows how fast things go: `rate` in prompt tokens a second."""
    early = EarlyAbort(TTFT, Linear(), lambda sequence: (sequence.tenant, ""))
    early.pace = pace or Pace()
    if rate is not None:
        early.rate.add(rate * MICRO * 100, 100)
    return early


def waiting(arrival: int, at: float = 0.0, prompt: int = 10, tenant: str = "a") -> Sequence:
    return Sequence(
        f"{tenant}{arrival}", [1] * prompt, prompt, Sampling(max_tokens=4), None, tenant, arrival=arrival, arrived=at
    )


def queue(policy: str = "VTC", ttft: float = TTFT, **spec: object) -> FairQueue:
    return make_queue(
        read_spec(json.dumps({"policy": policy, "earlyAbort": {"ttftSeconds": ttft}, **spec})), CounterTable("own")
    )


@pytest.mark.parametrize(("now", "lost"), [(5.4, False), (5.59, False), (5.61, True), (7.0, True)])
def test_a_request_is_lost_when_going_next_would_not_save_it(now: float, lost: bool) -> None:
    early = judge(Pace(base=0.2, per_token=0.02))
    early.add(one := waiting(0, prompt=10))

    assert early.look(now).lost == ([one] if lost else [])


def test_nobody_is_lost_before_its_deadline_while_nothing_is_known() -> None:
    early = judge()
    early.add(one := waiting(0, prompt=10_000))

    assert early.look(5.99).lost == []
    assert early.look(6.0).lost == [one]


@given(
    st.lists(st.tuples(st.floats(0, 10), st.integers(1, 500)), max_size=12),
    st.floats(0, 12), st.floats(0, 1), st.floats(0, 0.01),
)  # fmt: skip
def test_exactly_those_are_lost_that_could_not_make_it_alone(
    requests: list[tuple[float, int]], now: float, base: float, per_token: float
) -> None:
    """With the true pace: never one that could still make it, and never silence for one that cannot."""
    early = judge(Pace(base, per_token))
    made = [waiting(arrival, at, prompt) for arrival, (at, prompt) in enumerate(sorted(requests))]
    for sequence in made:
        early.add(sequence)

    lost = early.look(now).lost

    assert lost == [s for s in made if base + per_token * s.prompt_len >= s.arrived + TTFT - now]


@given(st.lists(st.tuples(st.floats(0, 4), st.integers(1, 400)), min_size=2, max_size=8), st.floats(50, 400))
def test_no_other_set_of_more_requests_could_all_make_it(requests: list[tuple[float, int]], rate: float) -> None:
    """Moore and Hodgson against all subsets: at this rate, with nobody new, the plan serves the most."""
    early = judge(rate=rate)
    made = [waiting(arrival, at, prompt) for arrival, (at, prompt) in enumerate(sorted(requests))]
    for sequence in made:
        early.add(sequence)
    known = early.rate.per_second
    assert known is not None

    kept, rest = early._chosen(made, 4.0, known)

    def in_time(chosen: tuple[Sequence, ...]) -> bool:
        at = 4.0
        for sequence in chosen:
            at += sequence.prompt_len * MICRO / known
            if at > sequence.arrived + TTFT:
                return False
        return True

    subsets = chain.from_iterable(combinations(made, size) for size in range(len(made) + 1))
    assert in_time(tuple(kept))
    assert len(kept) == max(len(subset) for subset in subsets if in_time(subset))
    assert sorted([*kept, *rest], key=lambda s: s.arrival) == made


def test_while_all_can_make_it_nothing_changes_and_when_not_the_costliest_steps_back() -> None:
    early = judge(rate=100)
    for arrival, prompt in enumerate((300, 100, 100)):
        early.add(waiting(arrival, prompt=prompt))
    assert early.look(0.0).arranged == []

    early.add(waiting(3, prompt=250))
    [order] = early.look(0.1).arranged

    assert [sequence.arrival for sequence in order] == [1, 2, 3, 0]


def test_who_stepped_back_gets_its_place_again_when_there_is_room_for_all() -> None:
    early = judge(rate=100)
    made = [waiting(arrival, prompt=prompt) for arrival, prompt in enumerate((300, 250, 100))]
    for sequence in made:
        early.add(sequence)
    [order] = early.look(0.0).arranged
    assert [sequence.arrival for sequence in order] == [1, 2, 0]

    early.gone(made[1])
    [order] = early.look(0.1).arranged

    assert [sequence.arrival for sequence in order] == [0, 2]


def test_what_cannot_be_hoped_for_is_told_at_once_and_not_only_at_its_deadline() -> None:
    """2,000 tokens at 100 a second for each of twenty: three times as fast, nine make it."""
    early = judge(rate=100)
    for arrival in range(20):
        early.add(waiting(arrival, prompt=200))

    lost = early.look(0.0).lost

    assert len(lost) == 20 - int(3 * TTFT * 100 / 200)
    assert early.retry_after() == 20 * 200 / 100


def test_a_tenant_is_not_judged_by_anothers_backlog() -> None:
    early = judge(rate=1000)
    for arrival in range(200):
        early.add(waiting(arrival, prompt=200, tenant="flood"))
    early.add(waiting(200, prompt=200, tenant="calm"))

    verdict = early.look(0.0)

    assert {sequence.tenant for sequence in verdict.lost} == {"flood"}
    assert {order[0].tenant for order in verdict.arranged} == {"flood"}


def test_what_has_been_admitted_before_or_came_with_tokens_is_never_judged() -> None:
    waits = queue()
    resumed, preempted, fresh = waiting(0), waiting(1), waiting(2)
    resumed.tokens.append(7)
    for sequence in (resumed, preempted, fresh):
        waits.add(sequence)
    waits.admit(preempted)
    waits.put_back(preempted)

    assert waits.expired(100.0) == [fresh]


def test_pace_and_rate_are_learned_from_steps_and_not_from_idle_time() -> None:
    waits = queue("FCFS")
    early = waits._early
    assert early is not None
    first, second = waiting(0, 100.0, 50), waiting(1, 100.0, 50)
    waits.add(first)
    waits.expired(100.0)
    for start, count, now in ((0, 50, 100.8), (50, 1, 101.0), (51, 1, 101.2)):
        if start == 0:
            waits.admit(first)
        first.tokens.append(0)
        waits.ran(first, start, count, made=1)
        waits.expired(now)
    assert early.pace.base == pytest.approx(0.2, rel=0.2)

    waits.leave(first)
    waits.add(second)
    second.arrived = 900.0
    waits.expired(900.0)

    assert early.pace.base == pytest.approx(0.2, rel=0.2)
    assert early.rate.per_second is None  # nobody has waited yet


def test_a_rate_is_believed_when_enough_was_seen_and_forgets() -> None:
    rate = Rate(memory=12.0)
    rate.add(10, 1.0)
    assert rate.per_second is None
    for _ in range(3):
        rate.add(10, 1.0)
    assert rate.per_second == pytest.approx(10)
    for _ in range(100):
        rate.add(30, 1.0)
    assert rate.per_second == pytest.approx(30, rel=0.01)


@for_seeds(st.sampled_from(POLICIES), st.sampled_from([4.0, 10.0, 25.0]))
def test_nobody_waits_beyond_the_deadline_and_who_is_given_up_pays_nothing(
    seed: int, policy: str, ttft: float
) -> None:
    """P17, under every policy, in virtual time with steps of a second; and work is conserved: what stays in the queue
    after an admission does not fit."""
    load = small(seed)
    run = Engine(queue(policy, ttft), load.pool, Timing(1.0))

    coming = load.requests[::-1]
    while coming or run.busy:
        while coming and coming[-1].at <= run.now:
            run.offer(coming.pop())
        if not run.busy:
            run.now = coming[-1].at
            continue
        run.admit()
        head = run.queue.head()
        assert head is None or not run.fits(head)
        assert all(run.now - sequence.arrived < ttft for sequence in run.queue)
        run.step()

    for job in run.jobs:
        assert job.finished is not None
        assert job.refused == (job.first_token is None)
        assert job.sequence.charged == (0 if job.refused else Linear().of(job.request.prompt, job.sequence.output_len))
    assert sum(tally.aborted for tally in run.queue.tallies.values()) == sum(job.refused for job in run.jobs)
    for client, tally in run.queue.tallies.items():
        assert tally.service == run.served[client]
        assert (tally.running, tally.waiting, tally.in_flight) == (0, 0, 0)


@for_seeds()
def test_tenants_keep_their_bound(seed: int) -> None:
    """Early abort reorders within a tenant only: waiting tenants' counters stay within U of each other."""
    load = small(seed)
    run = Engine(queue("VTC", 12.0), load.pool)

    drive(run, load.requests, lambda: _within(spread(run), bound_of(load.pool, load.longest)))


def _within(value: int, bound: int) -> None:
    assert value <= bound


def test_a_burst_is_told_before_its_deadline_and_served_as_far_as_it_can_be() -> None:
    """And first come first served serves almost nothing of what follows: the control."""
    requests = [Request("a", at / 4, 40, 10) for at in range(40)] + [Request("a", 12.0, 40, 10)] * 100
    requests += [Request("a", 15.0 + at / 2, 40, 10) for at in range(40)]
    met = []
    for waits in (queue("FCFS"), make_queue(read_spec('{"policy": "FCFS"}'), CounterTable("own"))):
        run = Engine(waits, 400, Timing(0.2))
        run.run(sorted(requests, key=lambda request: request.at))
        met.append(sum(job.first_token is not None and job.first_token - job.request.at < TTFT for job in run.jobs))
        told = [job.finished - job.request.at for job in run.jobs if job.refused and job.finished is not None]
        assert not told or sum(seconds < TTFT - 2 for seconds in told) > len(told) / 2

    assert met[0] > met[1] + 30


def test_the_scheduler_gives_up_the_waiting_and_keeps_the_running() -> None:
    room = Room(64, 256)
    adapter = room.residency.register("pirate", "r1", 8, 2, 100, (), False)[0]
    serving = Scheduler(room, Limits(256, 1, 64), queue())
    runs, waits = waiting(0), waiting(0)
    waits.adapter = adapter
    waits.request_id = "late"
    for sequence in (runs, waits):
        serving.add(sequence)
    batch = serving.schedule()
    assert batch is not None
    serving.commit(batch, [7])
    assert adapter.waiting == 1

    [lost] = serving.queue.expired(TTFT)
    assert lost is waits
    serving.abort(lost.request_id)

    assert (adapter.waiting, serving.waiting, serving.running) == (0, 0, 1)
    assert serving.queue.expired(1000.0) == []
    assert serving.queue.tallies["a"].aborted == serving.queue.aborted == 1
