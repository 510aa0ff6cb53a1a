"""Admission policies by name, as a simulation asks for them: those that a base model can declare, and those that only a
simulation can know (the oracle's lengths)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from lorafleet_runtime.core.fairness.cost import MICRO
from lorafleet_runtime.core.fairness.counters import CounterTable
from lorafleet_runtime.core.fairness.dlpm import DeficitLongestPrefix
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.fairness.meter import Meter
from lorafleet_runtime.core.fairness.policies import FairnessSpec, make_queue
from lorafleet_runtime.core.fairness.prediction import Predictor
from lorafleet_runtime.core.fairness.vtc import Vtc
from lorafleet_runtime.core.sequence import Sequence

SPECS: Mapping[str, FairnessSpec] = {
    "vtc": FairnessSpec(),
    "weighted": FairnessSpec(),
    "vtc-predict": FairnessSpec(prediction="MovingAverage"),
    "hierarchical": FairnessSpec(users="Fair"),
    "fcfs": FairnessSpec(policy="FCFS"),
    "lcf": FairnessSpec(policy="LCF"),
}
POLICIES = (*SPECS, "vtc-oracle", "vtc-50", "drr", "dlpm")
"""And `rpm(N)`. `vtc` and `weighted` are one policy: only the latter is given the clients' weights."""


@dataclass(slots=True)
class Foretold:
    """Knows what a request will be answered with, up to a factor in 1 ± `error`. A simulated client declares exactly
    what it gets, so that a limit tells the length."""

    error: float = 0.0
    seed: int = 0

    def expected(self, sequence: Sequence) -> int:
        # One draw a request, whenever it is asked for: a request that is asked about twice is told the same.
        factor = random.Random(f"{self.seed} {sequence.request_id}").uniform(1 - self.error, 1 + self.error)
        return round(sequence.sampling.max_tokens * factor)

    def learn(self, sequence: Sequence) -> None:
        pass


def queue_for(policy: str, table: CounterTable | None = None, *, pool: int = 10_000, seed: int = 0) -> FairQueue:
    """The queue of a policy; `pool`, in tokens, is what the deficit policies' quantum is a part of: M/20 for deficit
    round robin, as in the artifact. Raises ValueError for a name that is none."""
    table = table or CounterTable("own")
    if policy in SPECS:
        return make_queue(SPECS[policy], table)
    if policy.startswith("rpm(") and policy.endswith(")"):
        return make_queue(FairnessSpec(policy="RPM", requests_per_minute=int(policy[4:-1])), table)
    if policy == "drr":
        return make_queue(FairnessSpec(policy="DRR", quantum=max(1, pool // 20)), table)
    if policy == "dlpm":
        return FairQueue(DeficitLongestPrefix(max(1, pool // 20) * MICRO, Meter(table)))
    errors = {"vtc-oracle": 0.0, "vtc-50": 0.5}
    if policy not in errors:
        raise ValueError(f"policy {policy!r} is none of {', '.join(POLICIES)}, rpm(N)")
    predictor: Predictor = Foretold(errors[policy], seed)
    return FairQueue(Vtc(Meter(table)), predictor=predictor)
