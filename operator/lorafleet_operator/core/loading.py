"""The adapter half of a plan: which loads and unloads make one base model's replicas hold what they should."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from lorafleet_operator.core.actions import LoadAdapter, UnloadAdapter
from lorafleet_operator.core.objects import (
    Adapter,
    Artifact,
    Desired,
    ObjectKey,
    Observed,
    Ref,
    Replica,
    Resident,
)
from lorafleet_operator.core.placement import PERMANENT, Places, There, place, residency, serves_other, standing
from lorafleet_operator.core.rollout import Held


@dataclass(slots=True)
class Loads:
    """What one base model's adapters need now."""

    loads: list[LoadAdapter] = field(default_factory=list)
    unloads: list[UnloadAdapter] = field(default_factory=list)
    wake_at: list[float] = field(default_factory=list)


def adapter_steps(
    adapters: Iterable[Adapter], replicas: Sequence[Replica], observed: Observed, barred: frozenset[Ref], now: float
) -> Loads:
    """Loads and surplus unloads of `adapters` on `replicas`, important ones first; `barred` are over quota."""
    ordered = sorted(adapters, key=lambda a: (-a.priority, a.ref))
    wanted = {adapter.ref for adapter in ordered}
    held = {r.name: {x.adapter for x in r.residents if x.state != "Failed"} for r in replicas}
    places = Places(replicas, {name: len(there & wanted) for name, there in held.items()})
    steps = Loads()
    known = residency(replicas)
    for adapter in ordered:
        artifact = observed.artifacts.get(adapter.ref)
        there = known.get(adapter.ref, {})
        if isinstance(artifact, Artifact) and not _settled(adapter, artifact.revision, there, len(places)):
            _step(adapter, artifact, places, there, observed, adapter.ref in barred, now, steps)
    return steps


def _settled(adapter: Adapter, revision: str, there: There, places: int) -> bool:
    """Does each of as many copies as are wanted serve this revision, and nothing else lie there? So it is with most."""
    if not min(adapter.copies_min, places) <= len(there) <= adapter.copies_max:
        return False
    return all(len(r) == 1 and r[0].state == "Ready" and r[0].revision == revision for r in there.values())


def _step(
    adapter: Adapter, artifact: Artifact, places: Places, there: There, observed: Observed, barred: bool, now: float,
    steps: Loads,
) -> None:  # fmt: skip
    placement = place(adapter, artifact.revision, places, there)
    for name in placement.targets:
        residents = there.get(name, ())
        if all(resident.state == "Failed" for resident in residents):
            places.add(name)
        state = standing(residents, artifact.revision)
        if state in ("Ready", "Loading") or placement.refused is not None or barred or not artifact.files:
            continue
        retry_at = observed.load_retry_at.get((adapter.ref, name), now) if state == "Failed" else now
        if retry_at > now:
            steps.wake_at.append(retry_at)
        else:
            why = _why_load(adapter, artifact, residents)
            steps.loads.append(LoadAdapter(name, adapter.ref, artifact, adapter.pinned, why))
    for name in placement.surplus:
        why = f"{len(placement.targets)} of at most {adapter.copies_max} copies lie elsewhere"
        steps.unloads.append(UnloadAdapter(name, adapter.ref.wire_id, why))


def _why_load(adapter: Adapter, artifact: Artifact, residents: Sequence[Resident]) -> str:
    failed = [r for r in residents if r.state == "Failed" and r.revision == artifact.revision]
    if failed:
        return f"another attempt after {failed[0].reason or 'a failure'}"
    if serves_other(residents, artifact.revision):
        return f"its source has changed to {artifact.revision[:19]}"
    return f"{adapter.copies_min} copies are wanted" if adapter.copies_min > 1 else "one copy is wanted"


def unwanted(desired: Desired, replicas: Iterable[Replica]) -> list[UnloadAdapter]:
    """Unloads of what no object wants on these replicas. What cannot be read now is left alone."""
    unloads = []
    for replica in replicas:
        if replica.state != "Ready":
            continue
        there = {r.adapter for r in replica.residents if r.state != "Draining"}
        whys = {ref: why for ref in there if (why := _why_unwanted(desired, ref, replica.base)) is not None}
        unloads += [UnloadAdapter(replica.name, ref.wire_id, whys[ref]) for ref in sorted(whys)]
    return unloads


def _why_unwanted(desired: Desired, ref: Ref, base: Ref) -> str | None:
    adapter = desired.adapters.get(ref)
    if adapter is not None:
        return None if adapter.base == base else f"LoRAAdapter {ref} belongs to BaseModel {adapter.base} now"
    aside = desired.set_aside.get(ObjectKey("LoRAAdapter", ref.namespace, ref.name))
    if aside is not None:
        return f"LoRAAdapter {ref} is refused: {aside.problems[0].message}" if aside.readable else None
    return f"there is no LoRAAdapter {ref}" if desired.complete else None


def holder(adapters: Mapping[Ref, Adapter], stay: Sequence[Replica], observed: Observed) -> Held:
    """Says why a replica must not stop: it serves the last copy of an adapter that `stay` could still take over."""
    known = cache(lambda: residency(stay))  # few passes ask

    def held(replica: Replica) -> tuple[str, bool] | None:
        for ref in sorted({r.adapter for r in replica.residents if r.state == "Ready"} & set(adapters)):
            elsewhere = [r for residents in known().get(ref, {}).values() for r in residents]
            if any(r.state == "Ready" for r in elsewhere):
                continue
            artifact = observed.artifacts.get(ref)
            revision = artifact.revision if isinstance(artifact, Artifact) else ""
            failures = [r for r in elsewhere if r.state == "Failed" and r.revision == revision]
            if any(failure.reason in PERMANENT for failure in failures):
                continue  # it will never be Ready there: waiting would not end
            return f"it serves the last copy of {ref}", bool(failures)
        return None

    return held
