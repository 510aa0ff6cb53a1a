"""How long the operator's decisions take on large fleets: the plan alone, and everything else that one pass computes.

Pure functions on objects in memory, so this is one core's work with no API server, no network and no clock."""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

from bench.record import Result, write
from lorafleet_operator.core.actions import LoadAdapter, Plan
from lorafleet_operator.core.fleet import fleet_documents
from lorafleet_operator.core.objects import AllowedNamespaces, Desired, Observed, Ref, Replica, Resident
from lorafleet_operator.core.planner import plan
from lorafleet_operator.core.status import statuses
from lorafleet_operator.core.validation import admit
from lorafleet_sim.fleets import adapter, base_model, desired, observed, replica, resident, secret, tenant

BENCH = "planner"
PLAN_SECONDS = 1.0
TENANTS = 500
NOW_ISO = "2026-01-01T00:00:00Z"
Case = tuple[str, Desired, Observed]


def main() -> None:
    """Gate, measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything; writes nothing")
    arguments = parser.parse_args()
    scale = 10 if arguments.quick else 1
    results: list[Result] = []
    for bases in (1, 100):
        results += _shape(bases, 1000 // scale, 10_000 // scale, repeats=3 if arguments.quick else 5)
    write(results, quick=arguments.quick, packages=("lorafleet",))


def _shape(bases: int, replicas: int, adapters: int, repeats: int) -> list[Result]:
    """Four moments of one fleet."""
    wanted = _declared(bases, replicas, adapters)
    empty = _replicas(wanted, {})
    cold = plan(wanted, observed(wanted, *empty), 0.0)
    _gate_cold(cold, wanted, replicas // bases)
    held = _held(cold, wanted)
    full = _replicas(wanted, held)
    settled = observed(wanted, *full)
    assert plan(wanted, settled, 0.0) == Plan((), None), "a converged fleet must give an empty plan"
    lost = observed(wanted, replace(full[0], residents=()), *full[1:])
    moved = _loads(plan(wanted, lost, 0.0))
    assert sorted(a.adapter for a in moved) == sorted(r.adapter for r in full[0].residents), "only what was lost"
    newcomer = adapter("newcomer", "t0", base=next(iter(wanted.base_models)))
    more = replace(wanted, adapters={**wanted.adapters, newcomer.ref: newcomer})
    name = f"{adapters} adapters, {replicas} replicas, {bases} base models"
    cases: list[Case] = [
        (f"{name}: cold", wanted, observed(wanted, *empty)),
        (f"{name}: converged", wanted, settled),
        (f"{name}: one replica empty", wanted, lost),
        (f"{name}: one adapter more", more, observed(more, *full)),
    ]
    results = []
    for case, declared, seen in cases:
        taken = _time(lambda declared=declared, seen=seen: plan(declared, seen, 0.0), repeats)  # type: ignore[misc]
        met = taken <= PLAN_SECONDS
        results.append(Result(BENCH, case, "plan", taken, "s", goal=f"≤ {PLAN_SECONDS:g}", met=met, repeats=repeats))
    return results + _rest(f"{name}: converged", wanted, settled, repeats)


def _rest(case: str, wanted: Desired, seen: Observed, repeats: int) -> list[Result]:
    """What a pass computes beside the plan."""
    decided = plan(wanted, seen, 0.0)
    before = statuses(wanted, seen, decided, {}, NOW_ISO)
    parts: dict[str, Callable[[], object]] = {
        "rules between objects": lambda: admit(wanted),
        "statuses": lambda: statuses(wanted, seen, decided, before, NOW_ISO),
        "documents": lambda: fleet_documents(wanted, seen, lambda _: 1),
    }
    return [Result(BENCH, case, name, _time(work, repeats), "s", repeats=repeats) for name, work in parts.items()]


def _declared(bases: int, replicas: int, adapters: int) -> Desired:
    everyone = AllowedNamespaces("All")
    refs = [Ref("models", f"base{i}") for i in range(bases)]
    models = [base_model(replicas // bases, ref, allowed_namespaces=everyone) for ref in refs]
    mine = [adapter(f"a{i}", f"t{i % TENANTS}", base=refs[i % bases]) for i in range(adapters)]
    tenants = [tenant(f"t{i}", (f"t{i}",)) for i in range(TENANTS)]
    secrets = [secret(f"t{i}", f"sk-{i}".encode()) for i in range(TENANTS)]
    return desired(*models, *mine, *tenants, *secrets)


def _replicas(wanted: Desired, held: dict[str, list[Resident]]) -> list[Replica]:
    return [
        replica(model, index, *held.get(f"{model.ref.name}-{index}", ()))
        for model in wanted.base_models.values()
        for index in range(model.replicas)
    ]


def _held(decided: Plan, wanted: Desired) -> dict[str, list[Resident]]:
    held: dict[str, list[Resident]] = defaultdict(list)
    for action in _loads(decided):
        held[action.replica].append(resident(wanted.adapters[action.adapter]))
    return held


def _loads(decided: Plan) -> list[LoadAdapter]:
    return [action for action in decided.actions if isinstance(action, LoadAdapter)]


def _gate_cold(decided: Plan, wanted: Desired, each: int) -> None:
    """Correctness first: every adapter once, spread evenly over its base model's replicas."""
    loads = _loads(decided)
    assert Counter(a.adapter for a in loads) == Counter(wanted.adapters.keys()), "each adapter is loaded once"
    counts = Counter(a.replica for a in loads)
    per_base = len(wanted.adapters) / len(wanted.base_models) / each
    assert max(counts.values()) - min(counts.values()) <= 1 and abs(max(counts.values()) - per_base) <= 1, counts


def _time(work: Callable[[], object], repeats: int) -> float:
    """Median seconds."""
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
