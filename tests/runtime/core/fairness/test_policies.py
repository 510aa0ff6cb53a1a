"""From a base model's `fairness` to its queue, and what each policy does to the same requests."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lorafleet_runtime.core.fairness.baselines import RequestsPerMinute
from lorafleet_runtime.core.fairness.counters import CounterTable
from lorafleet_runtime.core.fairness.policies import make_queue, read_spec
from lorafleet_sim.fairness_metrics import Gaps
from lorafleet_sim.fairness_policies import queue_for
from lorafleet_sim.serving import Engine
from lorafleet_sim.workloads import Request, small
from tests.runtime.core.fairness.kit import bound_of, drive, engine, flood, for_seeds


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"policy": "Random"}, "none of"),
        ({"policy": "RPM"}, "requestsPerMinute"),
        ({"requestsPerMinute": 5}, "requestsPerMinute"),
        ({"policy": "RPM", "requestsPerMinute": 0}, "at least 1"),
        ({"policy": "DRR", "quantum": 0}, "at least 1"),
        ({"policy": "FCFS", "users": "Fair"}, "leave them out"),
        ({"users": "Sometimes"}, "neither"),
        ({"prediction": "Oracle"}, "neither"),
        ({"earlyAbort": {}}, "ttftSeconds"),
        ({"earlyAbort": {"ttftSeconds": 0}}, "from 0.01 to 3600"),
        ({"earlyAbort": {"ttftSeconds": 1e9}}, "from 0.01 to 3600"),
        ({"clusterAdapters": 0}, "at least 1"),
        ({"unknown": 1}, "not a fairness specification"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(spec: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_spec(json.dumps(spec))


@pytest.mark.parametrize("policy", ["VTC", "FCFS", "LCF", "DRR", "DLPM"])
def test_every_policy_makes_a_queue(policy: str) -> None:
    assert len(make_queue(read_spec(json.dumps({"policy": policy})), CounterTable("own"))) == 0


@for_seeds()
def test_users_of_one_tenant_are_held_to_the_same_bound_and_split_no_more_than_their_tenants_share(seed: int) -> None:
    """Two levels [VTC 4.5]: the second tenant has one user, the first as many as the workload has clients."""
    load = small(seed)
    run = engine(load.pool, "hierarchical")
    tenants, users = Gaps(), Gaps()
    requests = [replace(request, client="many", user=request.client) for request in load.requests]
    requests += flood("one", 20, 4, 4)
    served: dict[str, int] = {}

    def check() -> None:
        tenants.see(run.served, run.backlogged)
        served.clear()
        for job in run.jobs:
            if job.request.client == "many":
                done = (job.first_token is not None) * job.request.prompt + 2 * job.sequence.output_len
                served[job.request.user] = served.get(job.request.user, 0) + done * 10**6
        users.see(served, {sequence.user for sequence in run.queue if sequence.tenant == "many"})

    run.run(sorted(requests, key=lambda request: request.at), watch=check)

    bound = 2 * bound_of(load.pool, max(load.longest, 4))
    assert tenants.worst <= bound
    assert users.worst <= bound


@for_seeds()
def test_a_tenant_gains_nothing_by_taking_many_users(seed: int) -> None:
    """Users share what their tenant gets: Sybils gain nothing."""
    load = small(seed, steps=16)
    gaps = []
    for split in (False, True):
        run, gap = engine(load.pool, "hierarchical"), Gaps()
        requests = [replace(r, user=str(i) if split else "") for i, r in enumerate(load.requests)]
        drive(run, requests, lambda run=run, gap=gap: gap.see(run.served, run.backlogged))  # type: ignore[misc]
        gaps.append(gap.worst)

    assert max(gaps) <= 2 * bound_of(load.pool, load.longest)


@for_seeds()
def test_of_requests_per_minute_no_window_of_a_minute_accepts_more(seed: int) -> None:
    load = small(seed)
    limit = RequestsPerMinute(3)
    accepted: dict[str, list[float]] = {}
    for request in load.requests:
        at = request.at * 7
        wait = limit.refuses(request.client, at)
        if wait is None:
            accepted.setdefault(request.client, []).append(at)
        else:
            assert accepted[request.client][-3] + 60 <= at + wait
    for times in accepted.values():
        assert all(later - earlier >= 60 for earlier, later in zip(times, times[3:], strict=False))


def test_who_is_refused_is_counted_for_nothing() -> None:
    run = Engine(queue_for("rpm(2)"), 100)
    run.run([Request("a", float(at), 5, 5) for at in range(4)])

    assert [job.refused for job in run.jobs] == [False, False, True, True]
    assert run.queue.tallies["a"].service == 30 * 10**6
