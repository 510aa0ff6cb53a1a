"""How fair a run was: the measures of the VTC paper's artifact (fair_bench/plot/visualize.py), and Jain's index.

Service is in units (prompt tokens + 2·output tokens), time in seconds. A request's service counts as spread evenly
from its first token to its last, as the artifact has it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from lorafleet_sim.serving import Job

WINDOW = 60.0
"""Seconds over which a rate is taken: 30 before, 30 after."""
TICKS = 20


def units_of(job: Job) -> float:
    """n_p + 2·n_q."""
    return float(job.request.prompt + 2 * job.request.output)


def answered(jobs: Iterable[Job]) -> list[Job]:
    """Those that came to their own end."""
    return [job for job in jobs if job.finished is not None and job.sequence.finish_reason != "abort"]


def ticks(duration: float) -> list[float]:
    """19 moments: a twentieth of the duration apart, the first and its warm-up left out."""
    return [duration / TICKS * i for i in range(1, TICKS)]


def service_rates(jobs: Iterable[Job], at: float, half: float = WINDOW / 2) -> dict[str, float]:
    """s_j: units a second, by client, of everybody who ever asked."""
    rates: dict[str, float] = {}
    for job in jobs:
        rate = rates.setdefault(job.request.client, 0.0)
        if job.finished is None or job.first_token is None:
            continue
        overlap = min(at + half, job.finished) - max(at - half, job.first_token)
        length = job.finished - job.first_token
        inside = at - half <= job.finished < at + half
        share = max(0.0, overlap / length) if length > 0 else float(inside)
        rates[job.request.client] = rate + units_of(job) * share / (2 * half)
    return rates


def request_rates(jobs: Iterable[Job], at: float, half: float = WINDOW / 2) -> dict[str, float]:
    """r_j: units a second asked for, by client."""
    rates: dict[str, float] = {}
    for job in jobs:
        inside = at - half <= job.request.at < at + half
        rate = rates.get(job.request.client, 0.0)
        rates[job.request.client] = rate + units_of(job) * inside / (2 * half)
    return rates


def service_difference(jobs: Iterable[Job], at: float) -> float:
    """D(x) = Σ_j min(max_k s_k - s_j, |r_j - s_j|): who asked for little is not wronged."""
    jobs = list(jobs)
    served, asked = service_rates(jobs, at), request_rates(jobs, at)
    most = max(served.values(), default=0.0)
    return sum(min(most - served[client], abs(asked[client] - served[client])) for client in served)


@dataclass(frozen=True, slots=True)
class Summary:
    """A row of the paper's table. Rates in units or tokens a second, times in seconds."""

    max_diff: float
    avg_diff: float
    diff_var: float
    throughput: float
    served: int
    mean_ttft: float


def summary(jobs: Iterable[Job], duration: float) -> Summary:
    """Of a run that went to its end."""
    jobs = list(jobs)
    differences = [service_difference(jobs, at) for at in ticks(duration)]
    done = answered(jobs)
    tokens = sum(job.request.prompt + job.request.output for job in done)
    return Summary(
        max(differences),
        statistics.fmean(differences),
        statistics.pvariance(differences),
        tokens / max((job.finished or 0.0 for job in done), default=1.0),
        len(done),
        statistics.fmean(ttft(done)) if done else 0.0,
    )


def ttft(jobs: Iterable[Job]) -> list[float]:
    """Seconds from arrival to first token, of those that have one, ascending."""
    return sorted(job.first_token - job.request.at for job in jobs if job.first_token is not None)


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of an ascending list do not exceed (nearest rank)."""
    return values[min(len(values) - 1, max(0, -int(-share * len(values) // 1) - 1))]


def ttft_by_class(jobs: Iterable[Job], kind: Callable[[str], str]) -> dict[str, tuple[float, float, float, float]]:
    """Mean, p50, p90 and p99 by class of client."""
    classes: dict[str, list[Job]] = {}
    for job in jobs:
        classes.setdefault(kind(job.request.client), []).append(job)
    found = {}
    for name, members in sorted(classes.items()):
        times = ttft(members)
        if times:
            found[name] = (statistics.fmean(times), *(percentile(times, share) for share in (0.5, 0.9, 0.99)))
    return found  # type: ignore[return-value]


def response_time(jobs: Iterable[Job], client: str, at: float, half: float = WINDOW / 2) -> float | None:
    """Mean seconds to the first token, of the client's requests whose first token falls into the window."""
    times = [
        job.first_token - job.request.at
        for job in jobs
        if job.request.client == client and job.first_token is not None and at - half <= job.first_token < at + half
    ]
    return statistics.fmean(times) if times else None


def accumulated(jobs: Iterable[Job], until: float) -> dict[str, float]:
    """S_j(0..until), units by client."""
    return {client: rate * until for client, rate in service_rates(jobs, until / 2, until / 2).items()}


def max_min_shares(demands: Mapping[str, float], capacity: float) -> dict[str, float]:
    """What each gets when nobody can have more without somebody with less having less."""
    shares: dict[str, float] = {}
    left = min(capacity, sum(demands.values()))
    for position, client in enumerate(sorted(demands, key=lambda client: demands[client])):
        shares[client] = min(demands[client], left / (len(demands) - position))
        left -= shares[client]
    return shares


def jain(values: Iterable[float]) -> float:
    """(Σx)² / (n·Σx²): 1 when all are equal, 1/n when one has everything."""
    values = list(values)
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def jain_of_shares(jobs: Iterable[Job], until: float) -> float:
    """Jain's index of service by `until`, each client's over its max-min share of what was given by then."""
    jobs = list(jobs)
    served = accumulated(jobs, until)
    asked: dict[str, float] = {}
    for job in jobs:
        asked[job.request.client] = asked.get(job.request.client, 0.0) + units_of(job) * (job.request.at < until)
    shares = max_min_shares(asked, sum(served.values()))
    return jain(served[client] / share for client, share in shares.items() if share > 0)


@dataclass(slots=True)
class Gaps:
    """The greatest change of W_f/ω_f - W_g/ω_g over any part of an interval in which both wait throughout."""

    weights: dict[str, float] = field(default_factory=dict)
    worst: float = 0.0
    _extremes: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)

    def see(self, served: dict[str, int], backlogged: Iterable[str]) -> None:
        """A moment at which these wait; `served` by client, in any unit: `worst` has the same."""
        together = sorted(backlogged)
        pairs = [(f, g) for i, f in enumerate(together) for g in together[i + 1 :]]
        extremes = {}
        for f, g in pairs:
            gap = served[f] / self.weights.get(f, 1.0) - served[g] / self.weights.get(g, 1.0)
            low, high = self._extremes.get((f, g), (gap, gap))
            extremes[f, g] = low, high = min(low, gap), max(high, gap)
            self.worst = max(self.worst, high - low)
        self._extremes = extremes
