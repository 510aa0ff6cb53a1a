"""The curves behind the tables, into docs/fairness: response time, service, accumulated gap, replicas' gap."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from bench.fairness_runs import BOUND, Run, run
from bench.fairness_suites import BENCH
from bench.record import Result
from bench.svg_chart import Line, write_chart
from lorafleet_runtime.core.fairness.cost import MICRO
from lorafleet_sim.fairness_metrics import WINDOW, response_time, service_rates
from lorafleet_sim.replicated import Fleet
from lorafleet_sim.workloads import Request, evenly, poisson

DOCS = Path(__file__).parent.parent / "docs" / "fairness"
CURVES = {
    "overload": ("fcfs", "vtc"),
    "on/off overload": ("fcfs", "vtc"),
    "increase": ("fcfs", "vtc"),
    "dist_shift": ("fcfs", "lcf", "vtc"),
}
DASHES = {"fcfs": "2 4", "lcf": "8 4", "vtc": ""}
EXCHANGES = (1, 5, 20, 50, 100)
REPLICAS = (2, 4)
REPLICA_POOL = 256


def plots() -> list[Result]:
    """Write all charts. Returns what the replicas' chart shows, as numbers."""
    for suite, policies in CURVES.items():
        runs = [run(suite, policy) for policy in policies]
        name = suite.replace("/", "-").replace(" ", "-").replace("_", "-")
        write_chart(
            DOCS / f"response-{name}.svg", f"{suite}: time to the first token", "seconds", "seconds",
            [line for one in runs for line in _by_client(one, response=True)],
        )  # fmt: skip
        write_chart(
            DOCS / f"service-{name}.svg", f"{suite}: service received", "seconds", "units a second",
            [line for one in runs for line in _by_client(one, response=False)],
        )  # fmt: skip
    gaps = [Line(policy.upper(), run("overload", policy).gaps, i) for i, policy in enumerate(("fcfs", "vtc", "drr"))]
    bound = Line("2U", [(0.0, float(BOUND)), (360.0, float(BOUND))], 5, "6 4")
    write_chart(DOCS / "gap.svg", "overload: accumulated gap of two clients", "seconds", "units", [*gaps, bound])
    return _replicas()


def _by_client(one: Run, *, response: bool) -> list[Line]:
    moments = [10.0 * i for i in range(1, round(one.workload.duration / 10))]
    lines = []
    rates = [service_rates(one.jobs, at) for at in moments] if not response else []
    for colour, client in enumerate(one.workload.clients):
        if response:
            seen = [(at, response_time(one.jobs, client, at, WINDOW / 2)) for at in moments]
            points = [(at, value) for at, value in seen if value is not None]
        else:
            points = [(at, rate[client]) for at, rate in zip(moments, rates, strict=True)]
        lines.append(Line(f"{one.policy.upper()}, client {client}", points, colour, DASHES[one.policy]))
    return lines


def _replicas() -> list[Result]:
    """Two clients wait everywhere, the second after an absence: the worst gap of all service, over 2U(ΣM)."""
    results, lines = [], []
    for colour, replicas in enumerate(REPLICAS):
        points, bounds = [], []
        for every in EXCHANGES:
            outcomes = [_gap(replicas, every, seed) for seed in range(3)]
            gap, bound = max(gap for gap, _ in outcomes), min(bound for _, bound in outcomes)
            results.append(
                Result(BENCH, f"{replicas} replicas, exchange every {every} steps", "gap over 2U", gap, "x",
                       goal=f"≤ {bound:.2f}", met=gap <= bound, repeats=3)
            )  # fmt: skip
            points.append((float(every), gap))
            bounds.append((float(every), bound))
        lines.append(Line(f"{replicas} replicas", points, colour))
        lines.append(Line(f"{replicas} replicas, bound", bounds, colour, "6 4"))
    title = "Worst gap of all service, over 2U of all pools"
    write_chart(DOCS / "replicas.svg", title, "steps between exchanges", "gap over 2U", lines)
    return results


def _gap(replicas: int, every: int, seed: int) -> tuple[float, float]:
    """The gap, and what it may be: 2U(ΣM) + 2·a·δ; both over 2U(ΣM)."""
    rng = random.Random(seed)
    fleet = Fleet(replicas, REPLICA_POOL, every, rng)
    steps = 600
    rate = REPLICA_POOL * replicas / 400

    def stream(client: str, times: Iterator[float]) -> list[Request]:
        return [Request(client, at, rng.randint(1, 40), rng.randint(1, 40)) for at in times]

    requests = stream("steady", evenly(rate, steps)) + stream("back", poisson(rng, rate, steps, steps / 3))
    extremes: list[int] = []
    worst = 0

    def watch() -> None:
        nonlocal worst
        if len(fleet.backlogged_everywhere) < 2:
            extremes.clear()
            return
        gap = fleet.served["steady"] - fleet.served["back"]
        extremes[:] = [min([gap, *extremes]), max([gap, *extremes])]
        worst = max(worst, extremes[1] - extremes[0])

    fleet.run(requests, watch)
    single = 4 * REPLICA_POOL * replicas * MICRO
    return worst / single, (single + 2 * fleet.most_per_step * every) / single
