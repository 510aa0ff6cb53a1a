"""The nouns of the control plane: what is desired and, from `identity` and `observed`, the rest of them.

Frozen, compared by value, no behaviour.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lorafleet_operator.core.identity import ObjectKey, Problem, Problems, Ref, SecretKeyRef, SetAside
from lorafleet_operator.core.observed import (
    Artifact,
    ArtifactFile,
    Observed,
    PlacementState,
    Replica,
    ReplicaState,
    Resident,
    Unresolved,
)

__all__ = [
    "Adapter",
    "AllowedNamespaces",
    "Artifact",
    "ArtifactFile",
    "BaseModel",
    "Desired",
    "Engine",
    "Lora",
    "Namespace",
    "ObjectKey",
    "Observed",
    "PlacementState",
    "Problem",
    "Problems",
    "Quota",
    "Ref",
    "Replica",
    "ReplicaState",
    "Resident",
    "Secret",
    "SecretKeyRef",
    "SetAside",
    "Source",
    "Tenant",
    "Unresolved",
]


@dataclass(frozen=True, slots=True)
class Source:
    """Where an artifact comes from. Relative `file:` URIs start at `base_dir`, the folder of the YAML file."""

    uri: str
    revision: str | None = None
    sha256: str | None = None
    secret: SecretKeyRef | None = None
    base_dir: str = ""


@dataclass(frozen=True, slots=True)
class Engine:
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    kv_dtype: Literal["auto", "fp8"] = "auto"
    max_model_len: int = 2048
    max_num_seqs: int = 64
    max_batched_tokens: int = 512
    memory_bytes: int | None = None
    memory_fraction: float | None = None
    tensor_parallel: int = 1
    prefix_caching: bool = True
    speculative_tokens: int = 0
    adapter_dtype: Literal["auto", "fp8"] = "auto"


@dataclass(frozen=True, slots=True)
class Lora:
    max_rank: int = 64
    merge: Literal["Auto", "Never"] = "Auto"
    host_memory_bytes: int | None = None


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
    created: str = ""  # RFC 3339, "" outside a cluster; among objects that conflict the oldest wins


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


@dataclass(frozen=True, slots=True)
class Desired:
    """All that the user declared and that could be read; `problems` says what could not.

    `set_aside` names the objects behind the problems; keys that lie at `shared_keys` recognise nobody. `complete` is
    False when part of the input could not be read at all (a file that is not YAML): then a missing object proves
    nothing, and nothing is taken away for it.
    """

    base_models: Mapping[Ref, BaseModel] = field(default_factory=dict)
    adapters: Mapping[Ref, Adapter] = field(default_factory=dict)
    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    secrets: Mapping[Ref, Secret] = field(default_factory=dict, repr=False)
    problems: tuple[Problem, ...] = ()
    set_aside: Mapping[ObjectKey, SetAside] = field(default_factory=dict)
    namespace_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    shared_keys: frozenset[SecretKeyRef] = frozenset()
    complete: bool = True
