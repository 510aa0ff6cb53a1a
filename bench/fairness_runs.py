"""Runs of the simulated engine at the paper's size: one workload under one policy, with its gap at every step."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from lorafleet_sim.fairness_metrics import Gaps, Summary, summary
from lorafleet_sim.fairness_policies import queue_for
from lorafleet_sim.serving import A10G, Engine, Job, units
from lorafleet_sim.workloads import SUITES, Workload, unweighted

POOL = 10_000
BOUND = 2 * 2 * POOL
"""2U = 2·w_q·M, in units: how far two clients that wait throughout may drift apart."""


@dataclass(slots=True)
class Run:
    """`gaps`: (seconds, greatest difference of two clients' service so far in units), while requests come."""

    workload: Workload
    policy: str
    jobs: list[Job]
    summary: Summary
    reported_bound: float  # what the queue itself says, in units
    gap_while_waiting: float  # units, the worst over all parts of intervals in which two clients wait
    gaps: list[tuple[float, float]] = field(default_factory=list)
    served: dict[str, float] = field(default_factory=dict)  # units by client when the last request came

    @property
    def worst_gap(self) -> float:
        return max((gap for _, gap in self.gaps), default=0.0)


@cache
def run(suite: str, policy: str, seed: int = 0) -> Run:
    """A suite to its last token. The same call gives the same run, made once."""
    workload = SUITES[suite](seed)
    requests = list(workload.requests) if policy == "weighted" else unweighted(workload.requests)
    engine = Engine(queue_for(policy, pool=POOL, seed=seed), POOL, A10G, staggered=True)
    gaps: list[tuple[float, float]] = []
    served: dict[str, float] = {}

    waiting = Gaps()

    def watch() -> None:
        waiting.see(engine.served, engine.backlogged)
        if engine.now <= workload.duration:
            most, least = max(engine.served.values()), min(engine.served.values())
            gaps.append((engine.now, units(most - least)))
            served.update((client, units(amount)) for client, amount in engine.served.items())

    engine.run(requests, watch=watch)
    measured = summary(engine.jobs, workload.duration)
    bound, gap = units(engine.queue.bound), units(waiting.worst)
    return Run(workload, policy, engine.jobs, measured, bound, gap, gaps, served)
