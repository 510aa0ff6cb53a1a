"""From `spec.fairness` of a base model to the queue that it means. Refuses what it cannot honour, by field."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from lorafleet_runtime.core.early_abort import EarlyAbort, Share
from lorafleet_runtime.core.fairness.baselines import DeficitRoundRobin, RequestsPerMinute
from lorafleet_runtime.core.fairness.clustering import Clustering
from lorafleet_runtime.core.fairness.cost import Cost, Linear, Piecewise, Quadratic, kv_time, micro
from lorafleet_runtime.core.fairness.counters import CounterTable
from lorafleet_runtime.core.fairness.dlpm import DeficitLongestPrefix
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.fairness.meter import Meter
from lorafleet_runtime.core.fairness.order import Fifo, Order, user_of
from lorafleet_runtime.core.fairness.prediction import MovingAverage
from lorafleet_runtime.core.fairness.vtc import Vtc
from lorafleet_runtime.core.sequence import Sequence

_PLENTY = 2**30  # tokens: a table may well be free at first
POLICIES = ("VTC", "FCFS", "LCF", "RPM", "DRR", "DLPM")
LEAST_TTFT, MOST_TTFT = 0.01, 3600


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: int
    cost: float


class CostSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """`cost`, as in the BaseModel's definition."""

    kind: str = "Linear"
    input: float = 1
    output: float = 2
    product: float = 0
    output_squared: float = 0
    constant: float = 0
    memory: float = 0.001
    input_table: tuple[Point, ...] = ()
    output_table: tuple[Point, ...] = ()


class EarlyAbortSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """`earlyAbort`: who cannot get a first token in so many seconds is told so, instead of being served too late."""

    ttft_seconds: float


class FairnessSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """`spec.fairness`."""

    policy: str = "VTC"
    cost: CostSpec = CostSpec()
    users: str = "Tenant"
    prediction: str = "None"
    requests_per_minute: int | None = None
    quantum: int = 4096
    early_abort: EarlyAbortSpec | None = None
    cluster_adapters: int | None = None


def read_spec(text: str) -> FairnessSpec:
    """`spec.fairness` from JSON. Raises ValueError naming the field and what would do."""
    try:
        given: Mapping[str, Any] = json.loads(text or "{}")
        spec = msgspec.convert(given, FairnessSpec)
    except (ValueError, msgspec.ValidationError) as error:
        raise ValueError(f"is not a fairness specification: {error}") from None
    rules = [
        (spec.policy in POLICIES, f"policy {spec.policy!r} is none of {', '.join(POLICIES)}"),
        (spec.users in ("Tenant", "Fair"), f"users {spec.users!r} is neither Tenant nor Fair"),
        (spec.prediction in ("None", "MovingAverage"),
         f"prediction {spec.prediction!r} is neither None nor MovingAverage"),
        (spec.policy == "VTC" or (spec.users, spec.prediction) == ("Tenant", "None"),
         f"policy {spec.policy} knows no users and no prediction: leave them out"),
        ((spec.policy == "RPM") == (spec.requests_per_minute is not None),
         "requestsPerMinute belongs to policy RPM, which needs it"),
        (spec.requests_per_minute is None or spec.requests_per_minute >= 1,
         f"requestsPerMinute {spec.requests_per_minute} must be at least 1"),
        (spec.quantum >= 1, f"quantum {spec.quantum} must be at least 1"),
        (spec.early_abort is None or LEAST_TTFT <= spec.early_abort.ttft_seconds <= MOST_TTFT,
         f"earlyAbort.ttftSeconds must be from {LEAST_TTFT} to {MOST_TTFT}"),
        (spec.cluster_adapters is None or spec.cluster_adapters >= 1,
         f"clusterAdapters {spec.cluster_adapters} must be at least 1"),
    ]  # fmt: skip
    for holds, problem in rules:
        if not holds:
            raise ValueError(problem)
    read_cost(spec.cost)
    return spec


def read_cost(spec: CostSpec) -> Cost:
    """The cost function. Raises ValueError for one that counts nothing, falls, or is not known."""
    weights = (spec.input, spec.output, spec.product, spec.output_squared, spec.constant, spec.memory)
    if any(not 0 <= weight < float("inf") for weight in weights):
        raise ValueError("cost: a weight is negative or not a number")
    if spec.kind == "Linear":
        cost: Cost = Linear(micro(spec.input), micro(spec.output))
    elif spec.kind == "Quadratic":
        cost = Quadratic(
            micro(spec.input), micro(spec.output), micro(spec.product), micro(spec.output_squared), micro(spec.constant)
        )
    elif spec.kind == "KVTime":
        cost = kv_time(micro(spec.input), micro(spec.output), micro(spec.memory))
    elif spec.kind == "Piecewise":
        cost = Piecewise(_points(spec.input_table, "inputTable"), _points(spec.output_table, "outputTable"))
    else:
        raise ValueError(f"cost.kind {spec.kind!r} is none of Linear, Quadratic, Piecewise, KVTime")
    if cost.of(_PLENTY, _PLENTY) == 0:
        raise ValueError("cost: all weights are zero, so that nothing would be counted")
    return cost


def make_queue(
    spec: FairnessSpec, table: CounterTable, match: Callable[[Sequence], int] = lambda sequence: sequence.cached
) -> FairQueue:
    """The queue that a specification means; tenants' counters are those of `table`. `match`: how many tokens of a
    waiting prompt are cached now, for DLPM."""
    meter = Meter(table)
    limit = None if spec.requests_per_minute is None else RequestsPerMinute(spec.requests_per_minute)
    predictor = MovingAverage() if spec.prediction == "MovingAverage" else None
    cost = read_cost(spec.cost)
    early = None if spec.early_abort is None else EarlyAbort(spec.early_abort.ttft_seconds, cost, _share(spec))
    clustering = None if spec.cluster_adapters is None else Clustering(spec.cluster_adapters)
    return FairQueue(_order(spec, meter, match), cost, predictor, limit, early, clustering)


def _share(spec: FairnessSpec) -> Share:
    """What goes in one line of the policy's order, by tenant and within it."""
    if spec.policy in ("FCFS", "RPM"):
        return lambda sequence: ("", "")
    if spec.users == "Fair":
        return lambda sequence: (sequence.tenant, user_of(sequence))
    return lambda sequence: (sequence.tenant, "")


def _order(spec: FairnessSpec, meter: Meter, match: Callable[[Sequence], int]) -> Order:
    if spec.policy == "DLPM":
        return DeficitLongestPrefix(micro(spec.quantum), meter, match)
    if spec.policy == "DRR":
        return DeficitRoundRobin(micro(spec.quantum), meter)
    if spec.policy in ("FCFS", "RPM"):
        return Fifo(meter)
    if spec.users == "Fair":
        users = partial(Vtc, key=user_of, weight=lambda sequence: 1.0)
        return Vtc(meter, inner=users, lifts=spec.policy != "LCF")
    return Vtc(meter, lifts=spec.policy != "LCF")


def _points(table: tuple[Point, ...], name: str) -> tuple[tuple[int, int], ...]:
    points = tuple(sorted((point.tokens, micro(point.cost)) for point in table))
    tokens, costs = [p[0] for p in points], [p[1] for p in points]
    if not points or tokens[0] < 0 or len(set(tokens)) < len(tokens) or costs != sorted(costs) or costs[0] < 0:
        raise ValueError(f"cost.{name} needs points of different tokens whose cost does not fall")
    if points == ((0, costs[0]),):
        raise ValueError(f"cost.{name} needs a point beyond 0 tokens: its slope goes on from there")
    return points
