"""Random workloads on several replicas, and how far two clients drift apart that wait at all of them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from lorafleet_runtime.core.fairness.counters import CounterTable
from lorafleet_sim.fairness_metrics import Gaps
from lorafleet_sim.replicated import Fleet, MakeTable
from lorafleet_sim.workloads import Request, on_off, poisson
from tests.runtime.core.fairness.kit import bound_of


def requests_for(rng: random.Random, pool: int, steps: int, weights: dict[str, float]) -> Iterator[Request]:
    """Three clients at two to three times what the pool gives, steady or in bursts."""
    for client, weight in weights.items():
        prompts, outputs = rng.choice((4, pool // 8)), rng.choice((8, pool // 8))
        rate = rng.choice((0.7, 1.0)) * pool / ((prompts + outputs) / 2 * outputs / 2)
        period = rng.choice((10, 40, 10**9))
        for at in on_off(poisson(rng, rate, steps), period):
            yield Request(client, at, rng.randint(1, prompts), rng.randint(1, outputs), weight=weight)


def comeback_for(rng: random.Random, pool: int, steps: int, weights: dict[str, float]) -> Iterator[Request]:
    """One floods throughout, the others come to all replicas at once, in the middle."""
    for client, weight in weights.items():
        since = 0 if client == "f" else steps // 2
        for at in poisson(rng, pool / 16, steps, since):
            yield Request(client, at, rng.randint(1, 8), rng.randint(1, 8), weight=weight)


def gap_over_bound(
    rng: random.Random,
    *,
    replicas: int,
    every: int,
    table: MakeTable = CounterTable,
    pool: int = 64,
    steps: int = 200,
    weighted: bool = False,
    comeback: bool = False,
) -> float:
    """The worst gap of all service over the weight, over (2·U*(ΣM) + 2·a·δ) / min weight; a: the most service that all
    replicas gave in a step, δ: steps between two exchanges."""
    weights = {client: rng.choice((1.0, 2.0, 4.0)) if weighted else 1.0 for client in "fgh"}
    fleet = Fleet(replicas, pool, every, rng, table)
    gaps = Gaps(weights)
    make = comeback_for if comeback else requests_for
    requests = make(rng, pool * replicas, steps, weights)
    fleet.run(requests, lambda: gaps.see(fleet.served, fleet.backlogged_everywhere))
    bound = 2 * bound_of(pool * replicas, pool) + 2 * fleet.most_per_step * every
    return gaps.worst / (bound / min(weights.values()))
