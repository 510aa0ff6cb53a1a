"""The closed set of things an operator can do. Each carries `why`: log line, event and status are the same sentence."""

from __future__ import annotations

from dataclasses import dataclass

from lorafleet_operator.core.objects import Artifact, BaseModel, Ref


@dataclass(frozen=True, slots=True)
class StartReplica:
    """Start replica `index` of a base model with the weights of `artifact`."""

    replica: str
    index: int
    base: BaseModel
    artifact: Artifact
    spec_hash: str
    why: str

    def __str__(self) -> str:
        return f"start replica {self.replica}: {self.why}"


@dataclass(frozen=True, slots=True)
class StopReplica:
    """Drain a replica for at most `drain_seconds`, then end it."""

    replica: str
    drain_seconds: float
    why: str

    def __str__(self) -> str:
        return f"stop replica {self.replica}: {self.why}"


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    replica: str
    adapter: Ref
    artifact: Artifact
    pinned: bool
    why: str

    def __str__(self) -> str:
        return f"load adapter {self.adapter} ({self.artifact.revision[:19]}) on {self.replica}: {self.why}"


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """`adapter_id` is the wire id: what is unloaded may no longer have an object."""

    replica: str
    adapter_id: str
    why: str

    def __str__(self) -> str:
        return f"unload adapter {self.adapter_id} from {self.replica}: {self.why}"


Action = StartReplica | StopReplica | LoadAdapter | UnloadAdapter


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions in order of execution, and the earliest time at which the same inputs would plan otherwise (a retry)."""

    actions: tuple[Action, ...] = ()
    wake_at: float | None = None
