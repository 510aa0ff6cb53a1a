"""The status of a LoRAAdapter: where its copies are, and what that means, as conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorafleet_operator.core.actions import LoadAdapter, Plan, UnloadAdapter
from lorafleet_operator.core.conditions import Condition, shortened
from lorafleet_operator.core.objects import Adapter, Artifact, Resident, Unresolved
from lorafleet_operator.core.placement import PERMANENT, Here, Holder

PLACEMENTS = 64


@dataclass(frozen=True, slots=True)
class Copies:
    """What is known about one adapter's copies on its base model's replicas (`copies_of` makes it).

    `serving` are the Ready copies, of whatever revision, one per replica; `current` those of the wanted revision (while
    that is unknown, of any), `failed` likewise."""

    adapter: Adapter
    source: Artifact | Unresolved | None
    revision: str
    over_quota: bool
    able: int  # replicas of its base model that are Ready
    found: Here
    doing: tuple[str, ...]  # why of each action about it in this plan
    serving: tuple[Resident, ...]
    current: tuple[Resident, ...]
    failed: Here


def copies_of(
    adapter: Adapter, source: Artifact | Unresolved | None, over_quota: bool, able: int, found: Here,
    doing: tuple[str, ...],
) -> Copies:  # fmt: skip
    """Sort an adapter's residents by what they are to it."""
    revision = source.revision if isinstance(source, Artifact) else ""
    ready = [(replica, r) for replica, r in found if r.state == "Ready" and replica.state == "Ready"]
    by_name = {replica.name: r for replica, r in ready}
    return Copies(
        adapter, source, revision, over_quota, able, found, doing,
        serving=tuple(by_name[name] for name in sorted(by_name)),
        current=tuple(r for _, r in ready if revision in ("", r.revision)),
        failed=tuple((o, r) for o, r in found if r.state == "Failed" and revision in ("", r.revision)),
    )  # fmt: skip


def doing_by_adapter(plan: Plan) -> dict[str, tuple[str, ...]]:
    """The `why` of each action, by the wire id of the adapter that it is about."""
    doing: dict[str, tuple[str, ...]] = {}
    for action in plan.actions:
        if isinstance(action, LoadAdapter | UnloadAdapter):
            wire_id = action.adapter.wire_id if isinstance(action, LoadAdapter) else action.adapter_id
            doing[wire_id] = (*doing.get(wire_id, ()), action.why)
    return doing


def adapter_fields(copies: Copies, previous: Mapping[str, Any] | None, now_iso: str) -> dict[str, Any]:
    """All of the status but its conditions."""
    shown = next(iter((*copies.current, *copies.serving)), None)
    serving = sorted({replica.name for replica, r in copies.found if r.state == "Ready"})
    return {
        "servedName": copies.adapter.served_name,
        "revision": copies.revision,
        "shortRevision": copies.revision.removeprefix("sha256:")[:12],
        "rank": shown.rank if shown else 0,
        "pages": shown.pages if shown else 0,
        "bytes": shown.bytes if shown else 0,
        "ready": f"{len(copies.current)}/{copies.adapter.copies_min}",
        "replicas": ",".join(serving[:PLACEMENTS]),
        "placements": [_placement(o, r, previous, now_iso) for o, r in copies.found[:PLACEMENTS]],
    }


def adapter_conditions(copies: Copies, accepted: Condition) -> tuple[Condition, ...]:
    """Accepted, ArtifactVerified, Placed, Ready, Progressing, Degraded."""
    return accepted, _verified(copies), _placed(copies), _ready(copies), _progressing(copies), _degraded(copies)


def _placement(replica: Holder, resident: Resident, previous: Mapping[str, Any] | None, now_iso: str) -> dict[str, Any]:
    same = {"replica": replica.name, "uid": replica.incarnation, "revision": resident.revision, "state": resident.state}
    old = next(
        (p for p in (previous or {}).get("placements", ()) if {k: p.get(k) for k in same} == same),
        None,
    )  # fmt: skip
    since = old["since"] if old is not None and "since" in old else now_iso
    return {**same, "reason": resident.reason, "message": shortened(resident.message), "since": since}


def _verified(copies: Copies) -> Condition:
    name = "ArtifactVerified"
    if isinstance(copies.source, Unresolved):
        return Condition(name, False, copies.source.reason, copies.source.message)
    if copies.source is None:
        return Condition(name, None, "Resolving", "the source has not been looked up yet")
    refused = _refused(copies)
    if refused is not None:
        return Condition(name, False, refused.reason, refused.message)
    if copies.current:
        return Condition(name, True, "Verified", f"{copies.revision} has been loaded")
    return Condition(name, None, "NotYetLoaded", f"{copies.revision} has been found and not yet loaded")


def _placed(copies: Copies) -> Condition:
    alive = ("Pending", "Loading", "Ready")
    held = {replica.name for replica, r in copies.found if replica.state == "Ready" and r.state in alive}
    wanted = copies.adapter.copies_min
    if len(held) >= wanted:
        return Condition("Placed", True, "Placed", f"on {', '.join(sorted(held)[:PLACEMENTS])}")
    if not copies.able:
        return Condition("Placed", False, "NoReplicaReady", f"no replica of BaseModel {copies.adapter.base} is Ready")
    if copies.able < wanted:
        message = f"{wanted} copies need as many replicas; {copies.able} are Ready"
        return Condition("Placed", False, "InsufficientReplicas", message)
    return Condition("Placed", False, "Pending", f"{len(held)} of {wanted} copies have a place")


def _ready(copies: Copies) -> Condition:
    wanted = copies.adapter.copies_min
    if len(copies.current) >= wanted:
        count = len(copies.current)
        serve = "1 copy serves" if count == 1 else f"{count} copies serve"
        return Condition("Ready", True, "Ready", f"{serve} {copies.revision or 'it'}")
    if len(copies.serving) >= wanted:
        old = copies.serving[0].revision
        return Condition("Ready", True, "ServingOldRevision", f"{old} serves until {copies.revision} is Ready")
    obstacle = _obstacle(copies)
    if obstacle is not None:
        return Condition("Ready", False, *obstacle)
    if any(r.state in ("Loading", "Pending") for _, r in copies.found) or copies.doing:
        return Condition("Ready", False, "Loading", copies.doing[0] if copies.doing else "it is being loaded")
    placed = _placed(copies)
    return Condition("Ready", False, placed.reason if not placed.holds else "Pending", placed.message)


def _obstacle(copies: Copies) -> tuple[str, str] | None:
    """What stands in the way and does not go away by waiting a moment."""
    if isinstance(copies.source, Unresolved):
        return copies.source.reason, copies.source.message
    if copies.over_quota:
        return "QuotaExceeded", "its tenant's quota.maxAdapterBytes is used up by older adapters"
    refused = _refused(copies)
    if refused is not None:
        return refused.reason, refused.message
    if copies.failed and not any(r.state in ("Loading", "Pending") for _, r in copies.found):
        replica, resident = copies.failed[0]
        return resident.reason or "LoadFailed", f"{replica.name}: {resident.message}"
    return None


def _refused(copies: Copies) -> Resident | None:
    return next((r for _, r in copies.failed if r.reason in PERMANENT), None)


def _progressing(copies: Copies) -> Condition:
    loading = [o.name for o, r in copies.found if r.state in ("Loading", "Pending")]
    if copies.doing:
        return Condition("Progressing", True, "Acting", copies.doing[0])
    if loading:
        return Condition("Progressing", True, "Loading", f"on {', '.join(loading[:PLACEMENTS])}")
    return Condition("Progressing", False, "Settled", "nothing is under way")


def _degraded(copies: Copies) -> Condition:
    obstacle = _obstacle(copies)
    if obstacle is not None:
        return Condition("Degraded", True, *obstacle)
    missing = copies.adapter.copies_min - len(copies.serving)
    if copies.serving and missing > 0:
        message = f"{missing} of {copies.adapter.copies_min} copies are missing"
        return Condition("Degraded", True, "InsufficientCopies", message)
    return Condition("Degraded", False, "AsWanted", "nothing that serves is impaired")
