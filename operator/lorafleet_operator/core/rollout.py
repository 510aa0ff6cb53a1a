"""Which replicas a base model has, gets and loses. One step per pass; what serves goes last.

Surge: a new replica is Ready, and holds what the old one holds, before the old one stops. Replace: the old one stops
first, for machines without room for both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from lorafleet_operator.core.actions import StartReplica, StopReplica
from lorafleet_operator.core.fairness import fairness_arguments
from lorafleet_operator.core.objects import Artifact, BaseModel, Replica

DRAIN_SECONDS = 30.0
OVERDUE_SECONDS = 10.0  # a drain that takes so much longer than allowed has lost whoever was to end it

# Says why a replica must not stop yet, or None; the flag is set when loading elsewhere fails for want of room.
Held = Callable[[Replica], tuple[str, bool] | None]


@dataclass(frozen=True, slots=True)
class Fleet:
    """The replicas of one base model, sorted by what they are to its current settings."""

    base: BaseModel
    spec_hash: str  # "" while the weights are unresolved: then nothing counts as outdated
    kept: tuple[Replica, ...]
    surplus: tuple[Replica, ...]
    outdated: tuple[Replica, ...]
    draining: tuple[Replica, ...]

    @property
    def alive(self) -> int:
        return sum(not _dead(r) for r in (*self.kept, *self.surplus, *self.outdated))


@dataclass(frozen=True, slots=True)
class Steps:
    """The replica half of a plan; `waits` says by replica why one that has to go still stays."""

    starts: tuple[StartReplica, ...] = ()
    stops: tuple[StopReplica, ...] = ()
    wake_at: tuple[float, ...] = ()
    waits: tuple[tuple[str, str], ...] = ()


def spec_hash(base: BaseModel, artifact: Artifact) -> str:
    """The settings that a running process cannot change. Adapters and replicas are not among them.

    Fairness counts when it is not the default: a hash of before it could be chosen still holds.
    """
    runtime = {k: v for k, v in base.runtime.items() if k not in ("updateStrategy", "drainSeconds")}
    settings = [base.served_name, artifact.revision, asdict(base.engine), asdict(base.lora), runtime]
    settings += fairness_arguments(base.fairness)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def fleet_of(base: BaseModel, artifact: Artifact | None, replicas: Iterable[Replica]) -> Fleet:
    """Sort the base model's replicas. Of too many, those that were chosen before go, then those that hold the fewest
    adapters, then the highest indexes; whatever their state: a choice that follows what changes from one moment to the
    next would choose differently on a stale picture."""
    wanted = spec_hash(base, artifact) if artifact is not None else ""
    mine = sorted((r for r in replicas if r.base == base.ref), key=lambda r: (r.index, r.name))
    current = [r for r in mine if r.state != "Draining" and wanted in ("", r.spec_hash)]
    outdated = [r for r in mine if r.state != "Draining" and wanted not in ("", r.spec_hash)]
    leaving = sorted(current, key=_worth)[: max(len(current) - base.replicas, 0)]
    kept = tuple(r for r in current if r not in leaving)
    surplus = tuple(sorted(leaving, key=lambda r: (r.index, r.name)))
    draining = tuple(r for r in mine if r.state == "Draining")
    return Fleet(base, wanted, kept, surplus, tuple(outdated), draining)


def _worth(replica: Replica) -> tuple[bool, int, int, str]:
    held = len({resident.adapter for resident in replica.residents if resident.state != "Failed"})
    return not replica.chosen, held, -replica.index, replica.name


def candidates(fleet: Fleet) -> tuple[Replica, ...]:
    """The replicas that adapters belong on: those that stay, or, while none of them is Ready, whatever serves."""
    staying = tuple(r for r in fleet.kept if r.state == "Ready")
    return staying or tuple(r for r in (*fleet.surplus, *fleet.outdated) if r.state == "Ready")


def replica_steps(fleet: Fleet, artifact: Artifact | None, taken: Iterable[str], held: Held, now: float) -> Steps:
    """The starts and stops of one base model. `taken` are the names in use anywhere."""
    stops, waits = _stops(fleet, held)
    stuck = any(blocked for _, _, blocked in waits)
    overdue, ends = overdue_drains(fleet.draining, _drain(fleet.base), now)
    starts, retries = _starts(fleet, artifact, taken, now, stuck) if artifact is not None else ((), ())
    stopped = {stop.replica for stop in stops} - {start.replica for start in starts}
    return Steps(
        starts,
        (*overdue, *(stop for stop in stops if stop.replica in stopped)),
        (*retries, *ends),
        tuple((name, why) for name, why, _ in waits),
    )


def overdue_drains(
    draining: Iterable[Replica], drain: float, now: float
) -> tuple[tuple[StopReplica, ...], tuple[float, ...]]:
    """Stops for replicas whose drain nobody ended (its operator died), and when the others would be overdue."""
    stops, wakes = [], []
    for replica in draining:
        end = replica.since + drain + OVERDUE_SECONDS
        if now >= end:
            why = f"it drains for longer than {drain:g} s"
            stops.append(StopReplica(replica.name, 0.0, why, replica.incarnation))
        else:
            wakes.append(end)
    return tuple(stops), tuple(wakes)


def _starts(
    fleet: Fleet, artifact: Artifact, taken: Iterable[str], now: float, stuck: bool
) -> tuple[tuple[StartReplica, ...], tuple[float, ...]]:
    starts, wakes = [], []
    for replica in fleet.kept:
        if _dead(replica) and replica.retry_at <= now:
            starts.append(_start(fleet, artifact, replica.name, replica.index, _again(replica)))
        elif _dead(replica):
            wakes.append(replica.retry_at)
    room = min(fleet.base.replicas - len(fleet.kept), _budget(fleet, stuck))
    reused = [r for r in fleet.outdated if _dead(r)][: max(room, 0)]
    for replica in reused:  # a dead one is no loss: its index starts again with the new settings, at once
        starts.append(_start(fleet, artifact, replica.name, replica.index, "the settings it ran with have changed"))
    names = set(taken)
    indexes = {r.index for r in (*fleet.kept, *fleet.surplus, *fleet.outdated, *fleet.draining)}
    for _ in range(room - len(reused)):
        index = next(i for i in range(len(indexes) + 1) if i not in indexes)
        name = replica_name(fleet.base, index, names)
        starts.append(_start(fleet, artifact, name, index, _missing(fleet)))
        indexes.add(index)
        names.add(name)
    return tuple(starts), tuple(wakes)


def _budget(fleet: Fleet, stuck: bool) -> int:
    """How many replicas may be started now beside those that live."""
    if fleet.base.runtime.get("updateStrategy") == "Replace":
        return fleet.base.replicas - fleet.alive - len(fleet.draining)
    if all(_dead(r) for r in fleet.outdated):
        return fleet.base.replicas
    first = not any(not _dead(r) for r in fleet.kept)
    settled = all(r.state == "Ready" for r in fleet.kept)
    return max(fleet.base.replicas + 1 - fleet.alive, int(first or (stuck and settled)))


def _stops(fleet: Fleet, held: Held) -> tuple[tuple[StopReplica, ...], list[tuple[str, str, bool]]]:
    stops: list[StopReplica] = []
    waits: list[tuple[str, str, bool]] = []
    spare = _spare(fleet)
    settled = sum(r.state == "Ready" for r in fleet.kept) >= fleet.base.replicas
    why = f"{fleet.base.replicas} replicas are wanted"
    leaving = [(r, why) for r in reversed(fleet.surplus)]
    leaving += [(r, "the settings it runs with have changed") for r in fleet.outdated]
    for replica, reason in leaving:
        if replica.state == "Gone":
            continue
        ready = replica.state == "Ready"
        if replica.state == "Failed":
            stops.append(StopReplica(replica.name, 0.0, reason, replica.incarnation))
        elif spare <= 0 if ready else not settled:  # on a stale picture a Ready one is still Starting
            waits.append((replica.name, "too few others are Ready", False))
        elif fleet.base.replicas and (blocked := _blocked(fleet, replica, held)):
            waits.append((replica.name, *blocked))
        else:
            drain = _drain(fleet.base) if ready else 0.0
            stops.append(StopReplica(replica.name, drain, reason, replica.incarnation))
            spare -= ready
    return tuple(stops), waits


def _blocked(fleet: Fleet, replica: Replica, held: Held) -> tuple[str, bool] | None:
    """Replace gives its adapters up for the time of the restart: that is what it is for."""
    replaced = replica in fleet.outdated and fleet.base.runtime.get("updateStrategy") == "Replace"
    return None if replaced else held(replica)


def _spare(fleet: Fleet) -> int:
    """How many Ready replicas may stop in this pass."""
    kept = sum(r.state == "Ready" for r in fleet.kept)
    others = sum(r.state == "Ready" for r in (*fleet.surplus, *fleet.outdated))
    if fleet.outdated and fleet.base.runtime.get("updateStrategy") == "Replace":
        return int(kept == len(fleet.kept) and not fleet.draining)
    return min(kept + others - fleet.base.replicas, others)


def replica_name(base: BaseModel, index: int, taken: Iterable[str]) -> str:
    """`NAME-INDEX`; with the namespace in front when another namespace's base model has that name already."""
    short = f"{base.ref.name}-{index}"
    return short if short not in set(taken) else f"{base.ref.namespace}.{short}"


def _start(fleet: Fleet, artifact: Artifact, name: str, index: int, why: str) -> StartReplica:
    return StartReplica(name, index, fleet.base, artifact, fleet.spec_hash, why)


def _again(replica: Replica) -> str:
    said = f": {replica.message}" if replica.message else ""
    return f"it is {replica.state.lower()} after {replica.failures} failed starts{said}"


def _missing(fleet: Fleet) -> str:
    if fleet.outdated:
        return "the settings have changed, and the new replica comes before the old one goes"
    return f"{len(fleet.kept)} of {fleet.base.replicas} replicas exist"


def _drain(base: BaseModel) -> float:
    return float(base.runtime.get("drainSeconds", DRAIN_SECONDS))


def _dead(replica: Replica) -> bool:
    return replica.state in ("Failed", "Gone")
