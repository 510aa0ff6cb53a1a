"""Deficit longest prefix match: locality as far as deficits allow [DLPM]."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import strategies as st

from lorafleet_runtime.core.fairness.cost import MICRO
from lorafleet_runtime.core.fairness.dlpm import DeficitLongestPrefix
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_sim.fairness_metrics import Gaps
from lorafleet_sim.serving import Engine
from lorafleet_sim.workloads import small, unweighted
from tests.runtime.core.fairness.kit import bound_of, drive, for_seeds, sequence


@for_seeds(st.sampled_from([1, 16, 100]))
def test_waiting_clients_drift_apart_by_at_most_two_quanta_and_what_is_in_flight(seed: int, quantum: int) -> None:
    """2(U + Q), with prompts of which a random part is cached."""
    load = small(seed)
    rng = Random(seed)
    requests = [replace(each, cached=rng.randrange(each.prompt)) for each in unweighted(load.requests)]
    run, gaps = Engine(FairQueue(DeficitLongestPrefix(quantum * MICRO)), load.pool), Gaps()

    drive(run, requests, lambda: gaps.see(run.served, run.backlogged))

    assert gaps.worst <= 2 * (bound_of(load.pool, load.longest) + quantum * MICRO)


def test_the_longest_cached_prefix_goes_first_while_its_tenant_has_a_deficit() -> None:
    queue = FairQueue(DeficitLongestPrefix(25 * MICRO))
    for arrival in range(4):
        near = sequence("near", prompt=20, arrival=arrival)
        near.cached = 10
        queue.add(near)
    queue.add(sequence("far", prompt=20, arrival=9))

    taken = []
    while (head := queue.head()) is not None:
        queue.admit(head)
        taken.append(head.tenant)

    assert taken == ["near", "near", "near", "far", "near"]
