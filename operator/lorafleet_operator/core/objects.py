"""The nouns of the control plane: what is desired and what is observed. Frozen, compared by value, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """The identity of a namespaced object."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def wire_id(self) -> str:
        """The id on the wire, `NAMESPACE.NAME`: a namespace holds no dot, so the first dot separates."""
        return f"{self.namespace}.{self.name}"


@dataclass(frozen=True, slots=True)
class SecretKeyRef:
    namespace: str
    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where an artifact comes from. `base_dir` is the folder of the YAML file: relative `file:` URIs start there."""

    uri: str
    revision: str | None = None
    sha256: str | None = None
    secret: SecretKeyRef | None = None
    base_dir: str = ""


@dataclass(frozen=True, slots=True)
class Engine:
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: int = 2048
    max_num_seqs: int = 64
    max_batched_tokens: int = 512
    memory_bytes: int | None = None
    memory_fraction: float | None = None
    tensor_parallel: int = 1
    prefix_caching: bool = True


@dataclass(frozen=True, slots=True)
class Lora:
    max_rank: int = 64
    merge: Literal["Auto", "Never"] = "Auto"


@dataclass(frozen=True, slots=True)
class AllowedNamespaces:
    """Gateway API's shape. `selector` holds matchLabels and counts only with `from_ == "Selector"`."""

    from_: Literal["Same", "All", "Selector"] = "Same"
    selector: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BaseModel:
    ref: Ref
    served_name: str
    source: Source
    replicas: int = 1
    engine: Engine = Engine()
    lora: Lora = Lora()
    fairness: Mapping[str, Any] = field(default_factory=dict)
    migration: Mapping[str, Any] = field(default_factory=dict)
    runtime: Mapping[str, Any] = field(default_factory=dict)
    allowed_namespaces: AllowedNamespaces = AllowedNamespaces()
    generation: int = 1
    created: str = ""          # RFC 3339, "" outside a cluster; among objects that conflict the oldest wins


@dataclass(frozen=True, slots=True)
class Adapter:
    ref: Ref
    base: Ref
    served_name: str
    source: Source
    copies_min: int = 1
    copies_max: int = 1
    priority: int = 0
    pinned: bool = False
    merge: Literal["Auto", "Never", "Always"] = "Auto"
    generation: int = 1
    created: str = ""


@dataclass(frozen=True, slots=True)
class Quota:
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent_requests: int | None = None
    max_adapters: int | None = None
    max_adapter_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    name: str
    namespaces: tuple[str, ...] = ()
    api_keys: tuple[SecretKeyRef, ...] = ()
    weight: int = 1
    quota: Quota = Quota()
    models: tuple[Ref, ...] = ()
    generation: int = 1
    created: str = ""


@dataclass(frozen=True, slots=True)
class Secret:
    """Key material by key name. Its repr hides the values, so that no log line or test failure prints one."""

    ref: Ref
    data: Mapping[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Namespace:
    """Read only for its labels, which `allowedNamespaces.selector` may ask for."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, order=True)
class ObjectKey:
    """The identity of an object of any kind; `namespace` is "" for a Tenant."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace + '/' if self.namespace else ''}{self.name}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the input: where (file, object, field path), what, and what to do."""

    where: str          # "adapters.yaml: LoRAAdapter acme/pirate"
    field: str          # ".spec.copies.min", or "" for the whole object
    message: str
    reason: str = "Invalid"     # CamelCase, for conditions

    def __str__(self) -> str:
        return f"{self.where}{': ' + self.field if self.field else ''}: {self.message}"


@dataclass(frozen=True, slots=True)
class Problems:
    """What reading a document gave instead of an object. `key` is None when not even its identity is known."""

    problems: tuple[Problem, ...]
    key: ObjectKey | None = None
    generation: int = 1


@dataclass(frozen=True, slots=True)
class SetAside:
    """An object that exists but is not acted upon.

    `readable` tells a mistake in the text (what runs for the object is left as it is, for nobody knows what it
    should be) from a rule that refuses it (it is not wanted).
    """

    problems: tuple[Problem, ...]
    readable: bool
    generation: int = 1


@dataclass(frozen=True, slots=True)
class Desired:
    """All that the user declared and that could be read; `problems` says what could not.

    `set_aside` names the objects behind the problems. `complete` is False when part of the input could not be read
    at all (a file that is not YAML): then a missing object proves nothing, and nothing is taken away for it.
    """

    base_models: Mapping[Ref, BaseModel] = field(default_factory=dict)
    adapters: Mapping[Ref, Adapter] = field(default_factory=dict)
    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    secrets: Mapping[Ref, Secret] = field(default_factory=dict, repr=False)
    problems: tuple[Problem, ...] = ()
    set_aside: Mapping[ObjectKey, SetAside] = field(default_factory=dict)
    namespace_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    complete: bool = True


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    name: str
    url: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """A resolved source: `revision` is the digest of `files` (docs/contracts.md, Names)."""

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
    failures: int = 0          # starts in a row that did not reach Ready
    retry_at: float = 0.0      # monotonic seconds; a Failed replica is not started before
    since: float = 0.0         # monotonic seconds of the last change of state


@dataclass(frozen=True, slots=True)
class Observed:
    """What the world looks like. It may be stale: the planner must be safe on yesterday's picture."""

    replicas: Mapping[str, Replica] = field(default_factory=dict)
    artifacts: Mapping[Ref, Artifact | Unresolved] = field(default_factory=dict)        # by adapter
    base_artifacts: Mapping[Ref, Artifact | Unresolved] = field(default_factory=dict)   # by base model
    load_retry_at: Mapping[tuple[Ref, str], float] = field(default_factory=dict)        # (adapter, replica) -> not before
