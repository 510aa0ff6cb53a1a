"""What users are told: (desired, observed, plan) -> the status of every object. Pure; equal inputs give equal status.

Only facts that change rarely are in it: a status that counted requests or free pages would be written all the time.
What tenants have received is asked for rarely, and written in its own time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lorafleet_operator.core.actions import Plan
from lorafleet_operator.core.adapter_status import (
    adapter_conditions,
    adapter_fields,
    copies_of,
    doing_by_adapter,
)
from lorafleet_operator.core.conditions import Condition, rendered, shortened
from lorafleet_operator.core.inference_pools import gateway_integrated
from lorafleet_operator.core.manifests import BASE_MODEL_LABEL
from lorafleet_operator.core.objects import (
    Adapter,
    Artifact,
    BaseModel,
    Desired,
    ObjectKey,
    Observed,
    Problem,
    Ref,
    Replica,
    Tenant,
    Unresolved,
)
from lorafleet_operator.core.placement import Here, whereabouts
from lorafleet_operator.core.quota import over_byte_quota
from lorafleet_operator.core.remembered import Remembered
from lorafleet_operator.core.rollout import Fleet, fleet_of
from lorafleet_operator.core.tenant_status import quota_enforced, tenant_fields, usage_field

Status = dict[str, Any]
Facts = tuple[Adapter, Artifact | Unresolved | None, bool, int, Here, tuple[str, ...]]
Notes = Mapping[str, tuple[Problem, ...]]
KINDS = ("BaseModel", "LoRAAdapter", "Tenant")
REPLICAS = 64
ACCEPTED = Condition("Accepted", True, "Accepted", "it is acted upon")


def statuses(
    desired: Desired, observed: Observed, plan: Plan, previous: Mapping[ObjectKey, Mapping[str, Any]], now_iso: str,
    remembered: Remembered[Ref, Status] | None = None,
) -> dict[ObjectKey, Status]:  # fmt: skip
    """The status of every object, those that were set aside included.

    `previous` are the statuses written last: transition times are carried over, so that an unchanged world gives an
    unchanged status. `now_iso` is RFC 3339. `remembered` are the adapters' of the last time.
    """
    by_base: dict[Ref, list[Replica]] = defaultdict(list)
    for replica in observed.replicas.values():
        by_base[replica.base].append(replica)
    notes = _notes(desired)
    found = _adapters(desired, observed, plan, previous, now_iso, notes, remembered or Remembered())
    ready: dict[Ref, list[bool]] = defaultdict(list)
    for ref, adapter in desired.adapters.items():
        ready[adapter.base].append(_is_ready(found[ObjectKey("LoRAAdapter", *ref)]))
    for ref, base in desired.base_models.items():
        key = ObjectKey("BaseModel", *ref)
        source = observed.base_artifacts.get(ref)
        fleet = fleet_of(base, source if isinstance(source, Artifact) else None, by_base[ref])
        conditions = (
            _accepted(key, desired, notes), _workload(fleet, source, plan), _serving(fleet, source),
            *gateway_integrated(observed.pools),
        )  # fmt: skip
        fields = _base_fields(fleet, source, ready[ref])
        found[key] = _status(base, fields, conditions, previous.get(key), now_iso)
    count = Counter(ref.namespace for ref in desired.adapters)
    for name, tenant in desired.tenants.items():
        key = ObjectKey("Tenant", "", name)
        before = previous.get(key)
        received = usage_field(observed.usage, name, before)
        fields = {**tenant_fields(tenant, desired, count), **received}
        conditions = (_accepted(key, desired, notes), quota_enforced(tenant))
        found[key] = _status(tenant, fields, conditions, before, now_iso)
    return {**_aside(desired, previous, now_iso), **found}


def _adapters(
    desired: Desired, observed: Observed, plan: Plan, previous: Mapping[ObjectKey, Mapping[str, Any]], now_iso: str,
    notes: Notes, remembered: Remembered[Ref, Status],
) -> dict[ObjectKey, Status]:  # fmt: skip
    over = over_byte_quota(desired, observed)
    placed, doing = whereabouts(observed.replicas.values()), doing_by_adapter(plan)
    able = Counter(replica.base for replica in observed.replicas.values() if replica.state == "Ready")
    found: dict[ObjectKey, Status] = {}
    for ref, adapter in desired.adapters.items():
        key, base = ObjectKey("LoRAAdapter", *ref), adapter.base
        here, before = placed[base].get(ref, ()), previous.get(key)
        acting = doing.get(ref.wire_id, ()) if doing else ()
        facts = adapter, observed.artifacts.get(ref), ref in over, able[base], here, acting
        accepted = _accepted(key, desired, notes)
        make = partial(_adapter, facts, accepted, before, now_iso)
        found[key] = remembered.value(ref, (facts, accepted), make, before)
    remembered.keep(desired.adapters)
    return found


def _adapter(facts: Facts, accepted: Condition, before: Mapping[str, Any] | None, now_iso: str) -> Status:
    copies = copies_of(*facts)
    fields = adapter_fields(copies, before, now_iso)
    return _status(copies.adapter, fields, adapter_conditions(copies, accepted), before, now_iso)


def _status(
    owner: BaseModel | Adapter | Tenant, fields: Status, conditions: Sequence[Condition],
    previous: Mapping[str, Any] | None, now_iso: str,
) -> Status:  # fmt: skip
    shown = rendered(conditions, previous, owner.generation, now_iso)
    status = {"observedGeneration": owner.generation, **fields, "conditions": shown}
    return previous if isinstance(previous, dict) and previous == status else status  # equal ones are held once


def _aside(desired: Desired, previous: Mapping[ObjectKey, Mapping[str, Any]], now_iso: str) -> dict[ObjectKey, Status]:
    """Objects that are not acted upon: what was known about them stays, and Accepted and Ready say why."""
    found: dict[ObjectKey, Status] = {}
    for key, entry in desired.set_aside.items():
        if key.kind not in KINDS:
            continue
        reason, message = _told(entry.problems)
        conditions = [Condition("Accepted", False, reason, message)]
        if key.kind != "Tenant":
            conditions.append(Condition("Ready", False, reason, message))
        shown = rendered(conditions, previous.get(key), entry.generation, now_iso)
        found[key] = {"observedGeneration": entry.generation, "conditions": shown}
    return found


def _notes(desired: Desired) -> Notes:
    """Problems by the object they name."""
    notes: dict[str, tuple[Problem, ...]] = {}
    for problem in desired.problems:
        notes[problem.where] = (*notes.get(problem.where, ()), problem)
    return notes


def _accepted(key: ObjectKey, desired: Desired, notes: Notes) -> Condition:
    entry = desired.set_aside.get(key)
    if entry is not None:
        reason, message = _told(entry.problems)
        return Condition("Accepted", False, reason, f"{message}; its last good form goes on")
    noted = notes.get(str(key)) if notes else None
    return Condition("Accepted", True, "Accepted", _told(noted)[1]) if noted else ACCEPTED


def _told(problems: Sequence[Problem]) -> tuple[str, str]:
    texts = [f"{problem.field}: {problem.message}" if problem.field else problem.message for problem in problems]
    return problems[0].reason, "; ".join(texts)


def _is_ready(status: Status) -> bool:
    return any(shown["type"] == "Ready" and shown["status"] == "True" for shown in status["conditions"])


def _base_fields(fleet: Fleet, source: Artifact | Unresolved | None, adapters: Sequence[bool]) -> Status:
    everyone = sorted((*fleet.kept, *fleet.surplus, *fleet.outdated, *fleet.draining), key=lambda r: (r.index, r.name))
    ready = sum(replica.state == "Ready" for replica in everyone)
    revision = source.revision if isinstance(source, Artifact) else ""
    return {
        "servedName": fleet.base.served_name,
        "revision": revision,
        "shortRevision": revision.removeprefix("sha256:")[:12],
        "replicas": fleet.alive,
        "readyReplicas": ready,
        "selector": f"{BASE_MODEL_LABEL}={fleet.base.ref.name}",
        "ready": f"{ready}/{fleet.base.replicas}",
        "adapters": f"{sum(adapters)}/{len(adapters)}",
        "replicaStates": [
            {"name": r.name, "uid": r.incarnation, "state": r.state, "message": shortened(r.message)}
            for r in everyone[:REPLICAS]
        ],
    }


def _workload(fleet: Fleet, source: Artifact | Unresolved | None, plan: Plan) -> Condition:
    name, wanted = "WorkloadReady", fleet.base.replicas
    if isinstance(source, Unresolved):
        return Condition(name, False, source.reason, source.message)
    if source is None:
        return Condition(name, None, "Resolving", "the source has not been looked up yet")
    for replica in fleet.kept:
        if error := _start_error(replica):
            return Condition(name, False, "ReplicaFailed", error)
    waiting = [f"{r.name} stays: {plan.waits[r.name]}" for r in fleet.outdated if r.name in plan.waits]
    if fleet.outdated:
        return Condition(
            name, False, "RollingOut", "; ".join(waiting) or "new settings reach one replica after another"
        )
    ready = sum(replica.state == "Ready" for replica in fleet.kept)
    if ready < wanted:
        return Condition(name, False, "ReplicasStarting", f"{ready} of {wanted} replicas are Ready")
    return Condition(name, True, "ReplicasReady", f"{ready} of {wanted} replicas are Ready")


def _serving(fleet: Fleet, source: Artifact | Unresolved | None) -> Condition:
    everyone = (*fleet.kept, *fleet.surplus, *fleet.outdated)
    if any(replica.state == "Ready" for replica in everyone):
        return Condition("Ready", True, "Ready", "at least one replica serves")
    if fleet.base.replicas == 0:
        return Condition("Ready", False, "ScaledToZero", "spec.replicas is 0")
    if isinstance(source, Unresolved):
        return Condition("Ready", False, source.reason, source.message)
    errors = [error for replica in everyone if (error := _start_error(replica))]
    if errors:
        return Condition("Ready", False, "ReplicaFailed", errors[0])
    return Condition("Ready", False, "Starting", "no replica is Ready yet")


def _start_error(replica: Replica) -> str:
    """Why a replica does not come up, also while it tries again; empty when nothing is wrong."""
    if replica.state == "Failed":
        return f"{replica.name}: {replica.message}"
    return f"{replica.name}: {replica.last_error}" if replica.state == "Starting" and replica.last_error else ""
