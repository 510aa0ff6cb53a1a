"""Fairness over replicas that share counters now and then [VTC 4.6; vtc 17]."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from lorafleet_runtime.core.fairness.counters import CounterTable
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.fairness.meter import Meter
from lorafleet_runtime.core.fairness.vtc import Vtc
from tests.runtime.core.fairness.kit import for_seeds, sequence
from tests.runtime.core.fairness.replicas import gap_over_bound


@for_seeds(st.integers(2, 4), st.sampled_from([1, 5, 20, 60]), st.booleans())
def test_clients_that_wait_everywhere_drift_apart_by_the_bound_and_what_an_exchange_misses(
    seed: int, replicas: int, every: int, weighted: bool
) -> None:
    """At most (2·U*(ΣM) + 2·a·δ) / min weight, for all service together."""
    rng = random.Random(seed)

    assert gap_over_bound(rng, replicas=replicas, every=every, pool=24, steps=36, weighted=weighted) <= 1


@for_seeds(st.sampled_from([1, 5, 20]))
def test_clients_that_come_back_to_all_replicas_at_once_are_lifted_once(seed: int, every: int) -> None:
    assert gap_over_bound(random.Random(seed), replicas=2, every=every, pool=16, steps=24, comeback=True) <= 1


def test_a_charge_elsewhere_changes_who_goes_next_here() -> None:
    here, there = CounterTable("here"), CounterTable("there")
    queue = FairQueue(Vtc(Meter(here)))
    queue.add(sequence("a", arrival=0))
    queue.add(sequence("b", arrival=1))
    assert queue.head() is not None and queue.head().tenant == "a"  # type: ignore[union-attr]
    there.spend("a", 100)

    queue.order.recount(here.merge(there.since(0)))

    assert queue.head() is not None and queue.head().tenant == "b"  # type: ignore[union-attr]
