"""How far a fleet is from what was declared, for people who wait for it. Pure; statuses say more, more exactly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lorafleet_operator.core.objects import Adapter, BaseModel, Desired, Observed, Replica, Unresolved

Stage = Literal["resolving", "starting", "loading", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class Item:
    """One base model or adapter: its stage, how much of it is done (0..1), and what there is to say."""

    kind: Literal["BaseModel", "LoRAAdapter"]
    name: str
    served_name: str
    stage: Stage
    done: float = 0.0
    message: str = ""

    @property
    def settled(self) -> bool:
        return self.stage in ("ready", "failed")


def items(desired: Desired, observed: Observed) -> list[Item]:
    """Every base model, then every adapter, by name."""
    bases = [_base(desired.base_models[ref], observed) for ref in sorted(desired.base_models)]
    return bases + [_adapter(desired.adapters[ref], observed) for ref in sorted(desired.adapters)]


def settled(found: Iterable[Item]) -> bool:
    """Is there nothing left to wait for? What failed counts: it has its message, and may recover later."""
    return all(item.settled for item in found)


def _base(base: BaseModel, observed: Observed) -> Item:
    def item(stage: Stage, done: float = 0.0, message: str = "") -> Item:
        return Item("BaseModel", str(base.ref), base.served_name, stage, done, message)

    source = observed.base_artifacts.get(base.ref)
    if isinstance(source, Unresolved):
        return item("failed", 0.0, source.message)
    if source is None:
        return item("resolving")
    replicas = _of(base, observed)
    ready = [replica for replica in replicas if replica.state == "Ready"]
    if len(ready) >= base.replicas:
        return item("ready", 1.0, f"{len(ready)}/{base.replicas} replicas")
    failed = [replica for replica in replicas if replica.state == "Failed"]
    if failed:
        return item("failed", 0.0, failed[0].message)
    coming = [replica for replica in replicas if replica.state == "Starting"]
    done = (len(ready) + sum(replica.progress for replica in coming)) / max(base.replicas, 1)
    message = next((replica.message for replica in coming if replica.message), "")
    return item("loading" if any(r.incarnation for r in coming) else "starting", done, message)


def _adapter(adapter: Adapter, observed: Observed) -> Item:
    def item(stage: Stage, done: float = 0.0, message: str = "") -> Item:
        return Item("LoRAAdapter", str(adapter.ref), adapter.served_name, stage, done, message)

    source = observed.artifacts.get(adapter.ref)
    if isinstance(source, Unresolved):
        return item("failed", 0.0, source.message)
    if source is None:
        return item("resolving")
    if isinstance(observed.base_artifacts.get(adapter.base), Unresolved):
        return item("failed", 0.0, f"its base model {adapter.base} has failed")
    replicas = [replica for replica in observed.replicas.values() if replica.base == adapter.base]
    residents = [r for replica in replicas for r in replica.residents if r.adapter == adapter.ref]
    ready = [resident for resident in residents if resident.state == "Ready" and resident.revision == source.revision]
    if ready:
        return item("ready", 1.0, f"rank {ready[0].rank}")
    failed = [resident for resident in residents if resident.state == "Failed"]
    if failed and not any(resident.state in ("Loading", "Pending") for resident in residents):
        return item("failed", 0.0, failed[0].message or failed[0].reason)
    if replicas and all(replica.state == "Failed" for replica in replicas):
        return item("failed", 0.0, f"its base model {adapter.base} has failed")
    return item("loading" if residents else "starting")


def _of(base: BaseModel, observed: Observed) -> list[Replica]:
    return sorted((r for r in observed.replicas.values() if r.base == base.ref), key=lambda r: r.index)
