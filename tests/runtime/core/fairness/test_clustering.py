"""Adapter clustering: who may pass whom, how often, and that tenants notice nothing."""

from __future__ import annotations

import json
import random

import pytest

from lorafleet_runtime.core.fairness.clustering import PASSES
from lorafleet_runtime.core.fairness.counters import CounterTable
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.fairness.policies import make_queue, read_spec
from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_sim.serving import Engine
from lorafleet_sim.workloads import Request, small
from tests.runtime.core.fairness.kit import bound_of, drive, for_seeds, sequence, spread


def queue(most: int, policy: str = "FCFS") -> FairQueue:
    return make_queue(read_spec(json.dumps({"policy": policy, "clusterAdapters": most})), CounterTable("own"))


def asking(arrival: int, adapter: int | None, tenant: str = "a") -> Sequence:
    made = sequence(tenant, arrival=arrival)
    made.adapter = None if adapter is None else Adapter(adapter, f"{adapter}", "", 8, 1, 1, ())
    return made


def admitted(waits: FairQueue, count: int) -> list[int]:
    """The next so many that go."""
    order = []
    for _ in range(count):
        head = waits.head()
        assert head is not None
        waits.admit(head)
        order.append(head.arrival)
    return order


@pytest.mark.parametrize(("adapters", "most", "order"), [
    ([1, 2, 3, 1, 2], 2, [0, 1, 3, 4, 2]),  # 1 and 2 run: 3 steps back
    ([1, 2, 3, 1, 2], 3, [0, 1, 2, 3, 4]),
    ([1, 2, None, 1], 1, [0, 2, 3, 1]),  # the base model alone brings no adapter
    ([1, 2, 3, 4], 1, [0, 1, 2, 3]),  # a soft cap: nothing idles for it
])  # fmt: skip
def test_who_brings_no_new_adapter_goes_first(adapters: list[int | None], most: int, order: list[int]) -> None:
    waits = queue(most)
    for arrival, adapter in enumerate(adapters):
        waits.add(asking(arrival, adapter))

    assert admitted(waits, len(adapters)) == order


@pytest.mark.parametrize("policy", ["FCFS", "VTC", "LCF", "DRR", "DLPM"])
def test_a_head_is_passed_so_often_and_not_once_more(policy: str) -> None:
    waits = queue(1, policy)
    waits.add(asking(0, 1))
    waits.add(asking(1, 2))
    for arrival in range(2, 2 + 2 * PASSES):
        waits.add(asking(arrival, 1))

    order = admitted(waits, 2 + 2 * PASSES)

    assert order.index(1) == 1 + PASSES


@for_seeds()
def test_the_kth_goes_within_a_bounded_number_of_admissions(seed: int) -> None:
    rng = random.Random(seed)
    waits = queue(rng.randint(1, 3))
    for arrival in range(60):
        waits.add(asking(arrival, rng.choice((None, 1, 1, 1, 2, 3, 4, 5))))
    running: list[Sequence] = []
    for position in range(60):
        head = waits.head()
        assert head is not None
        waits.admit(head)
        assert position <= (head.arrival + 1) * (PASSES + 1)
        running.append(head)
        if rng.random() < 0.7:
            waits.leave(running.pop(rng.randrange(len(running))))


@for_seeds()
def test_tenants_keep_their_bound(seed: int) -> None:
    """It chooses within the tenant whose turn it is."""
    load = small(seed)
    rng = random.Random(seed)
    run = Engine(queue(2, "VTC"), load.pool)
    requests = [
        Request(r.client, r.at, r.prompt, r.output, adapter=rng.choice("abcdef"), rank=8) for r in load.requests
    ]

    def check() -> None:
        assert spread(run) <= bound_of(load.pool, load.longest)

    drive(run, requests, check)


def test_another_tenants_adapters_do_not_pass() -> None:
    waits = queue(1, "VTC")
    waits.add(asking(0, 1, "a"))
    waits.admit(waits.head())  # type: ignore[arg-type]
    waits.add(asking(1, 1, "a"))
    waits.add(asking(2, 2, "b"))
    waits.order.charge(asking(3, 1, "a"), 100)

    assert admitted(waits, 2) == [2, 1]
