"""How many first tokens came in time (S-LoRA, section 7.1; the artifact's run_exp): of all who asked, given up or
not."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lorafleet_sim.serving import Job


@dataclass(frozen=True, slots=True)
class Outcome:
    """`attainment`: share whose first token came in less than the deadline. `satisfaction`: mean of
    1 - (ttft/deadline)², 0 for later. `throughput`: requests answered a second, from the first arrival to the last
    token. `told`: median seconds after which those that were given up learned it."""

    attainment: float
    satisfaction: float
    throughput: float
    told: float | None


def outcome(jobs: Sequence[Job], deadline: float) -> Outcome:
    """Of a run that went to its end. `deadline` in seconds."""
    times = [job.first_token - job.request.at for job in jobs if job.first_token is not None]
    told = [job.finished - job.request.at for job in jobs if job.refused and job.finished is not None]
    ends = [job.finished for job in jobs if job.finished is not None]
    return Outcome(
        sum(time < deadline for time in times) / len(jobs),
        sum(max(0.0, 1 - (time / deadline) ** 2) for time in times) / len(jobs),
        len(times) / (max(ends) - jobs[0].request.at),
        statistics.median(told) if told else None,
    )
