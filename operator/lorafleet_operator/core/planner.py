"""plan(desired, observed, now) -> Plan: composes replicas and adapters, orders the actions. Touches nothing."""

from __future__ import annotations

from collections import defaultdict

from lorafleet_operator.core.actions import (
    Action,
    LoadAdapter,
    Plan,
    StartReplica,
    StopReplica,
    UnloadAdapter,
)
from lorafleet_operator.core.loading import adapter_steps, holder, unwanted
from lorafleet_operator.core.objects import (
    Adapter,
    Artifact,
    BaseModel,
    Desired,
    ObjectKey,
    Observed,
    Ref,
    Replica,
)
from lorafleet_operator.core.quota import over_byte_quota
from lorafleet_operator.core.rollout import DRAIN_SECONDS, candidates, fleet_of, overdue_drains, replica_steps


def plan(desired: Desired, observed: Observed, now: float) -> Plan:
    """What to do now, in order: starts, unloads (they make room), loads, stops. Empty means converged.

    `desired` holds no objects that rules between objects refuse (`validation.admit`). `observed` may be stale: acting
    on yesterday's picture repeats what was done or does less, and gives up no last copy.
    """
    starts: list[StartReplica] = []
    unloads: list[UnloadAdapter] = unwanted(desired, observed.replicas.values())
    loads: list[LoadAdapter] = []
    stops: list[StopReplica] = []
    wakes: list[float] = []
    waits: dict[str, str] = {}
    barred = over_byte_quota(desired, observed)
    adapters_of: dict[Ref, dict[Ref, Adapter]] = defaultdict(dict)
    replicas_of: dict[Ref, list[Replica]] = defaultdict(list)
    for adapter in desired.adapters.values():
        adapters_of[adapter.base][adapter.ref] = adapter
    for replica in observed.replicas.values():
        replicas_of[replica.base].append(replica)
    for ref in sorted(desired.base_models):
        base = desired.base_models[ref]
        artifact = _artifact(base, observed)
        fleet = fleet_of(base, artifact, replicas_of[ref])
        adapters = adapters_of[ref]
        places = candidates(fleet)
        placed = {name: a for name, a in adapters.items() if name not in barred}
        held = holder(placed, [r for r in fleet.kept if r.state == "Ready"], observed)
        taken = [*observed.replicas, *(start.replica for start in starts)]
        steps = replica_steps(fleet, artifact, taken, held, now)
        steady = [r for r in places if r.name not in {stop.replica for stop in steps.stops}]
        moves = adapter_steps(adapters.values(), steady, observed, barred, now)
        starts += steps.starts
        stops += steps.stops
        loads += moves.loads
        unloads += moves.unloads
        wakes += [*steps.wake_at, *moves.wake_at]
        waits |= dict(steps.waits)
    ends, later = _gone(desired, observed, now)
    actions: list[Action] = [*starts, *unloads, *loads, *stops, *ends]
    return Plan(tuple(actions), min([*wakes, *later], default=None), waits)


def _artifact(base: BaseModel, observed: Observed) -> Artifact | None:
    found = observed.base_artifacts.get(base.ref)
    return found if isinstance(found, Artifact) else None


def _gone(desired: Desired, observed: Observed, now: float) -> tuple[list[StopReplica], list[float]]:
    """Stops for the replicas of base models that exist no longer."""
    stops: list[StopReplica] = []
    wakes: list[float] = []
    for name in sorted(observed.replicas):
        replica = observed.replicas[name]
        why = _why_gone(desired, replica.base)
        if replica.base in desired.base_models or why is None or replica.state == "Gone":
            continue
        if replica.state == "Draining":
            overdue, ends = overdue_drains([replica], DRAIN_SECONDS, now)
            stops += overdue
            wakes += ends
        else:
            stops.append(StopReplica(name, _drain_of(replica), why, replica.incarnation))
    return stops, wakes


def _why_gone(desired: Desired, base: Ref) -> str | None:
    aside = desired.set_aside.get(ObjectKey("BaseModel", base.namespace, base.name))
    if aside is not None:
        return f"BaseModel {base} is refused: {aside.problems[0].message}" if aside.readable else None
    return f"there is no BaseModel {base}" if desired.complete else None


def _drain_of(replica: Replica) -> float:
    return DRAIN_SECONDS if replica.state == "Ready" else 0.0
