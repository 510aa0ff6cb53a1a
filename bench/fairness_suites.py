"""The paper's tables: every policy on every workload, beside the artifact's data."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from bench.fairness_runs import BOUND, Run, run
from bench.record import Result
from lorafleet_sim.fairness_metrics import jain_of_shares, ttft_by_class
from lorafleet_sim.workloads import REAL_COUNTS

BENCH = "fairness"
COUNTERS = ("fcfs", "lcf", "vtc", "vtc-predict", "vtc-50", "vtc-oracle", "drr", "dlpm", "hierarchical")
LIMITS = (30, 20, 15, 10, 5)
REAL = (*COUNTERS, *(f"rpm({limit})" for limit in LIMITS))
COLUMNS = (
    ("max_diff", "Max Diff", "units/s"),
    ("avg_diff", "Avg Diff", "units/s"),
    ("diff_var", "Diff Var", "(units/s)²"),
    ("throughput", "throughput", "tokens/s"),
    ("served", "served", "requests"),
    ("mean_ttft", "mean TTFT", "s"),
)
ARTIFACT: dict[str, tuple[float, ...]] = {
    "fcfs": (760.0, 433.5, 32_112, 776.9, 1500, 46.8),
    "lcf": (750.5, 323.8, 29_089, 778.4, 1500, 41.2),
    "vtc": (368.4, 251.7, 6_549, 778.8, 1500, 39.7),
    "vtc-predict": (365.5, 240.3, 5_322, 773.4, 1500, 39.7),
    "vtc-oracle": (329.5, 227.5, 4_476, 780.6, 1500, 40.0),
    "rpm(30)": (693.7, 309.5, 24_221, 747.3, 1324, 19.9),
    "rpm(20)": (446.8, 195.7, 7_450, 694.4, 1158, 3.7),
    "rpm(15)": (343.1, 161.1, 5_189, 625.8, 1053, 1.7),
    "rpm(10)": (217.7, 128.2, 2_767, 531.9, 900, 0.5),
    "rpm(5)": (143.9, 83.6, 1_020, 340.4, 581, 0.2),
}
ARTIFACT_GAPS: dict[tuple[str, str], float] = {
    ("overload", "vtc"): 9_050, ("overload", "vtc-50"): 1_789, ("overload", "vtc-oracle"): 377,
    ("overload", "fcfs"): 237_738, ("overload-multi", "vtc"): 2_976, ("overload-multi", "vtc-oracle"): 746,
    ("overload-multi", "fcfs"): 34_823, ("short/long", "vtc"): 5_235, ("short/long", "fcfs"): 204_786,
    ("short/long 2", "vtc"): 1_281, ("short/long 2", "fcfs"): 605_361,
}  # fmt: skip
ARTIFACT_AVG: dict[tuple[str, str], float] = {
    ("overload", "vtc"): 103.8, ("overload", "vtc-50"): 12.5, ("overload", "vtc-oracle"): 0.5,
    ("overload", "fcfs"): 439, ("dist_shift", "vtc"): 33.5, ("dist_shift", "lcf"): 114.3,
}  # fmt: skip
BOUNDED = ("vtc", "vtc-predict", "vtc-50", "vtc-oracle", "hierarchical")
OVERLOADS = ("overload", "overload-multi", "short/long", "short/long 2")
OTHERS = ("on/off less", "on/off overload", "poisson on/off", "increase", "dist_shift", "proportional")
LIGHT = 60
"""A client of the real trace with no more requests is light, one with more than 100 heavy."""


def real_trace(seeds: Iterable[int]) -> list[Result]:
    """The paper's table over its trace (rebuilt from counts and lengths), and the goals on it. Means over seeds."""
    seeds = list(seeds)
    means: dict[str, dict[str, float]] = {}
    results = []
    for policy in REAL:
        rows = [run("real", policy, seed).summary for seed in seeds]
        means[policy] = {name: statistics.fmean(getattr(row, name) for row in rows) for name, _, _ in COLUMNS}
        paper = ARTIFACT.get(policy)
        for column, (name, title, unit) in enumerate(COLUMNS):
            value = means[policy][name]
            known = None if paper is None else paper[column]
            ratio = None if known is None else value / known
            results.append(Result(BENCH, f"real: {policy}", title, value, unit, known, ratio, repeats=len(seeds)))
    return results + _goals(means, len(seeds)) + _light_and_heavy(seeds)


def _goals(means: dict[str, dict[str, float]], repeats: int) -> list[Result]:
    vtc, fcfs = means["vtc"], means["fcfs"]
    ours, paper = ARTIFACT["vtc"], ARTIFACT["fcfs"]
    found = []
    for name, column, title, most in (("avg_diff", 1, "Avg Diff", 0.65), ("diff_var", 2, "Diff Var", 0.3)):
        value = vtc[name] / fcfs[name]
        found.append(
            Result(BENCH, "real: VTC over FCFS", title, value, "x", ours[column] / paper[column], None,
                   f"≤ {most:g}", value <= most, repeats)
        )  # fmt: skip
    value = vtc["throughput"] / fcfs["throughput"]
    found.append(
        Result(BENCH, "real: VTC over FCFS", "throughput", value, "x", ours[3] / paper[3], None, "≥ 0.99",
               value >= 0.99, repeats)
    )  # fmt: skip
    matching = [f"rpm({n})" for n in LIMITS if means[f"rpm({n})"]["avg_diff"] <= vtc["avg_diff"]]
    loss = 1 - means[matching[0]]["throughput"] / fcfs["throughput"] if matching else 1.0
    found.append(
        Result(BENCH, f"real: {matching[0] if matching else 'no RPM'}, the first as fair as VTC", "throughput lost",
               loss, "x", 1 - ARTIFACT["rpm(20)"][3] / paper[3], None, "≥ 0.1", loss >= 0.1, repeats)
    )  # fmt: skip
    return found


def _light_and_heavy(seeds: list[int]) -> list[Result]:
    """How long those wait who ask for little."""

    def kind(client: str) -> str:
        count = REAL_COUNTS[int(client)]
        return "light" if count <= LIGHT else "heavy" if count > 100 else "middle"

    paper = {("vtc", "light"): 2.9, ("fcfs", "light"): 55.5, ("vtc", "heavy"): 65.4, ("fcfs", "heavy"): 41.1}
    found = []
    for policy in ("fcfs", "vtc", "drr"):
        rows = [ttft_by_class(run("real", policy, seed).jobs, kind) for seed in seeds]
        for name in ("light", "heavy"):
            for position, title in enumerate(("mean TTFT", "p50 TTFT", "p90 TTFT", "p99 TTFT")):
                value = statistics.fmean(row[name][position] for row in rows)
                known = paper.get((policy, name)) if position == 0 else None
                ratio = None if known is None else value / known
                case = f"real: {policy}, {name} clients"
                found.append(Result(BENCH, case, title, value, "s", known, ratio, repeats=len(seeds)))
    return found


def overloads(suites: Iterable[str] = OVERLOADS, policies: Iterable[str] = COUNTERS) -> list[Result]:
    """All clients ask for more than their share: the gap of service since the start, as the paper has it, and while two
    wait, which is what the bound is about."""
    found = []
    for suite in suites:
        for policy in policies:
            done = run(suite, policy)
            known = ARTIFACT_GAPS.get((suite, policy))
            ratio = None if known is None else done.worst_gap / known
            case = f"{suite}: {policy}"
            goal = f"≤ {BOUND:,} (2U)" if policy in BOUNDED else ""
            met = done.gap_while_waiting <= BOUND if goal else None
            found += [
                Result(BENCH, case, "accumulated gap", done.worst_gap, "units", known, ratio),
                Result(BENCH, case, "gap while both wait", done.gap_while_waiting, "units", goal=goal, met=met),
            ]
            if policy == "vtc":
                held = done.gap_while_waiting <= done.reported_bound
                goal = "≥ the gap while both wait"
                found.append(Result(BENCH, case, "bound reported", done.reported_bound, "units", goal=goal, met=held))
            found += _rest(done)
    return found


def weights() -> list[Result]:
    """Service of four clients with weights 1 to 4, over the first's; by the last arrival."""
    done = run("weighted", "weighted")
    total = sum(done.served.values())
    found = []
    for client, paper in zip("0123", (135.3, 270.5, 405.9, 541.2), strict=True):
        due = int(client) + 1
        value = done.served[client] / total * 10
        met = abs(value / due - 1) <= 0.02
        case = f"weighted: weight {due}"
        found.append(Result(BENCH, case, "service", value, "tenths", paper / 135.3, None, f"{due} ± 2 %", met))
    return found


def others(suites: Iterable[str] = OTHERS, policies: Iterable[str] = COUNTERS) -> list[Result]:
    """Demands that come and go: who stays below its share must not feel the others."""
    found = []
    for suite in suites:
        for policy in policies:
            done = run(suite, policy)
            found += _rest(done)
            classes = ttft_by_class(done.jobs, lambda client: client)
            for client in done.workload.clients:
                mean, _, p90, _ = classes[client]
                case = f"{suite}: {policy}, client {client}"
                found += [Result(BENCH, case, "mean TTFT", mean, "s"), Result(BENCH, case, "p90 TTFT", p90, "s")]
    return found


def _rest(done: Run) -> list[Result]:
    suite = next(name for name in (*OVERLOADS, *OTHERS) if done.workload.name == name)
    known = ARTIFACT_AVG.get((suite, done.policy))
    value = done.summary.avg_diff
    case = f"{suite}: {done.policy}"
    return [
        Result(BENCH, case, "Avg Diff", value, "units/s", known, None if known is None else value / known),
        Result(BENCH, case, "throughput", done.summary.throughput, "tokens/s"),
        Result(BENCH, case, "Jain's index", jain_of_shares(done.jobs, done.workload.duration), ""),
    ]
