"""What the world looks like: artifacts found, replicas and what they hold. Frozen, compared by value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lorafleet_operator.core.identity import Ref
from lorafleet_operator.core.usage import Usage


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """One file of an artifact.

    As found, `url` says where and which it is, such as `s3://BUCKET/KEY`, and is no secret. As handed to a runtime, it
    is a link that works for minutes, and `authorization` the header that it needs, if any.
    """

    name: str
    url: str
    sha256: str
    size: int
    authorization: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A resolved source: `revision` is the digest of `files` (docs/contracts.md, Names).

    Without files only its revision is known: what serves it goes on, and nothing can be loaded from it yet.
    """

    revision: str
    files: tuple[ArtifactFile, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(f.size for f in self.files)


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A source that could not be resolved: `reason` is CamelCase for conditions, `message` is for people."""

    reason: str
    message: str


PlacementState = Literal["Pending", "Loading", "Ready", "Draining", "Failed"]
ReplicaState = Literal["Starting", "Ready", "Draining", "Failed", "Gone"]
Pools = Literal["off", "missing", "there"]
"""InferencePools: not asked for; asked for in a cluster that does not know the kind; made."""


@dataclass(frozen=True, slots=True)
class Resident:
    """One adapter revision on one replica, as the replica itself reports it."""

    adapter: Ref
    revision: str
    state: PlacementState
    reason: str = ""
    message: str = ""
    rank: int = 0
    pages: int = 0
    bytes: int = 0
    running: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Replica:
    """One runtime process (or pod). `spec_hash` names the settings it was started with."""

    name: str
    base: Ref
    index: int
    state: ReplicaState
    spec_hash: str
    incarnation: str = ""
    url: str = ""
    admin_url: str = ""
    message: str = ""
    progress: float = 0.0
    residents: tuple[Resident, ...] = ()
    pages_total: int = 0
    pages_free: int = 0
    running: int = 0
    waiting: int = 0
    failures: int = 0  # starts in a row that did not reach Ready
    last_error: str = ""  # why the last of them failed; empty once Ready
    retry_at: float = 0.0  # monotonic seconds; a Failed replica is not started before
    since: float = 0.0  # monotonic seconds of the last change of state
    chosen: bool = False  # an earlier plan chose it as one of too many


@dataclass(frozen=True, slots=True)
class Observed:
    """What the world looks like. It may be stale: the planner must be safe on yesterday's picture."""

    replicas: Mapping[str, Replica] = field(default_factory=dict)
    artifacts: Mapping[Ref, Artifact | Unresolved] = field(default_factory=dict)  # by adapter
    base_artifacts: Mapping[Ref, Artifact | Unresolved] = field(default_factory=dict)  # by base model
    load_retry_at: Mapping[tuple[Ref, str], float] = field(default_factory=dict)  # by (adapter, replica)
    pools: Pools = "off"
    usage: Usage = field(default_factory=Usage)
