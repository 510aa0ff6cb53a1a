"""Which replica takes a request: one that holds the model ready, the least loaded, ties broken by a seed.

A pure function of the fleet and the loads: knows no clock, no sockets and no tenants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lorafleet_gateway.core.fleet_model import FAILED, READY, Adapter, BaseFleet, Replica, ReplicaKey


@dataclass(frozen=True, slots=True)
class Load:
    """Requests at a replica: `in_flight` are this gateway's own, `reported` are those of everybody else."""

    in_flight: int = 0
    reported: int = 0

    @property
    def total(self) -> int:
        return self.in_flight + self.reported


IDLE = Load()


@dataclass(frozen=True, slots=True)
class Choice:
    """The replica to ask, and the adapter's revision it holds ("" for a bare base model)."""

    replica: Replica
    revision: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No replica can be asked now. Waiting is in vain when the model is `gone` from the fleet, or when the
    operator says that its adapter has `failed`."""

    why: str
    gone: bool = False
    failed: bool = False


def holders(fleet: BaseFleet, adapter: Adapter | None, revision: str | None = None) -> list[Choice]:
    """The ready replicas that hold the model ready, each once.

    With `revision`, only its holders. Without, the holders of the wanted revision; where there are none yet,
    those of an older one, because a roll-out must not take a working adapter away."""
    ready = [replica for replica in fleet.document.replicas if replica.state == READY]
    if adapter is None:
        return [Choice(replica, "") for replica in ready]
    held = [
        Choice(fleet.replicas[placement.replica], placement.revision)
        for placement in adapter.placements
        if placement.state == READY
        and placement.replica in fleet.replicas
        and fleet.replicas[placement.replica].state == READY
    ]
    wanted = [choice for choice in held if choice.revision == (revision or adapter.revision)]
    if not wanted and revision is None:
        wanted = held
    return list({choice.replica.name: choice for choice in wanted}.values())


def route(
    fleet: BaseFleet | None,
    adapter_id: str | None,
    loads: Mapping[ReplicaKey, Load],
    *,
    seed: int,
    excluded: Collection[ReplicaKey] = (),
    avoided: Collection[ReplicaKey] = (),
    preferred: str = "",
    revision: str | None = None,
) -> Choice | Unavailable:
    """The holder with the least load that is not excluded; the replica named `preferred` whatever its load,
    if it is one.

    `excluded` replicas are never chosen: this request has just failed there. `avoided` ones are chosen when
    nothing else is left: others have failed there, and trying is the only way to know. Equal loads go to the
    replica that `seed` ranks first, so that one seed always gives one answer and many seeds spread evenly.
    """
    if fleet is None:
        return Unavailable("its base model is no longer served", gone=True)
    adapter = None
    if adapter_id is not None:
        adapter = fleet.by_id.get(adapter_id)
        if adapter is None:
            return Unavailable("the adapter is no longer served", gone=True)
    candidates = [choice for choice in holders(fleet, adapter, revision) if choice.replica.key not in excluded]
    if not candidates:
        failed = adapter is not None and adapter.state == FAILED and not excluded
        return Unavailable(_why(fleet, adapter, revision, bool(excluded)), failed=failed)
    for choice in candidates:
        if choice.replica.name == preferred:
            return choice
    candidates = [choice for choice in candidates if choice.replica.key not in avoided] or candidates
    least = min(loads.get(choice.replica.key, IDLE).total for choice in candidates)
    tied = [choice for choice in candidates if loads.get(choice.replica.key, IDLE).total == least]
    return tied[0] if len(tied) == 1 else min(tied, key=lambda choice: (_rank(seed, choice), choice.replica.name))


def superseded(fleet: BaseFleet | None, key: ReplicaKey) -> bool:
    """Whether the operator has given that process up: it is Failed, or another one has its name.

    A replica that is merely absent is not: its connections end with it, and a document may lag.
    """
    name, incarnation, _ = key
    replica = None if fleet is None else fleet.replicas.get(name)
    if replica is None:
        return False
    restarted = bool(incarnation and replica.incarnation and replica.incarnation != incarnation)
    return restarted or replica.state == FAILED


def _rank(seed: int, choice: Choice) -> bytes:
    return hashlib.blake2b(f"{seed}/{choice.replica.name}".encode(), digest_size=8).digest()


def _why(fleet: BaseFleet, adapter: Adapter | None, revision: str | None, failed: bool) -> str:
    if not fleet.document.replicas:
        return "its base model has no replica"
    if not any(replica.state == READY for replica in fleet.document.replicas):
        states = ", ".join(sorted({replica.state for replica in fleet.document.replicas}))
        return f"no replica of its base model is ready (they are {states})"
    if failed:
        return "every replica that holds it has just failed"
    if adapter is None:
        return "no replica is left"
    if revision is not None and revision != adapter.revision:
        return "the revision that began the answer is no longer served"
    detail = ": ".join(text for text in (adapter.reason, adapter.message.rstrip(".")) if text)
    return f"the adapter is {adapter.state or 'not placed'}" + (f" ({detail})" if detail else "")
