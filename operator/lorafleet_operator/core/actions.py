"""The closed set of things an operator can do.

Each carries `why`: log line, event and status are the same sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    """Drain a replica for at most `drain_seconds`, then end it.

    `incarnation`, when known, is the process that is meant: under a reused name, another one is not to be stopped.
    """

    replica: str
    drain_seconds: float
    why: str
    incarnation: str = ""

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
    """Actions in order of execution, and the earliest time at which the same inputs would plan otherwise (a retry).

    `waits` says, by replica, why one that has to go still stays.
    """

    actions: tuple[Action, ...] = ()
    wake_at: float | None = None
    waits: Mapping[str, str] = field(default_factory=dict)
