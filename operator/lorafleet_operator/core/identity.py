"""Who an object is, and what is wrong with it.

Identities are named tuples: they are hashed and compared for every object in every pass, and tuples do that in C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Ref(NamedTuple):
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


class ObjectKey(NamedTuple):
    """The identity of an object of any kind; `namespace` is "" for a Tenant."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace + '/' if self.namespace else ''}{self.name}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the input: where (file, object, field path), what, and what to do."""

    where: str  # "adapters.yaml: LoRAAdapter acme/pirate"
    field: str  # ".spec.copies.min", or "" for the whole object
    message: str
    reason: str = "Invalid"  # CamelCase, for conditions

    def __str__(self) -> str:
        return f"{self.where}{': ' + self.field if self.field else ''}: {self.message}"


@dataclass(frozen=True, slots=True)
class Problems:
    """What reading a document gave instead of an object. `key` is None when its identity is unknown too."""

    problems: tuple[Problem, ...]
    key: ObjectKey | None = None
    generation: int = 1


@dataclass(frozen=True, slots=True)
class SetAside:
    """An object that exists but is not acted upon.

    `readable` tells a mistake in the text (what runs for the object is left as it is, for nobody knows what
    it should be) from a rule that refuses it (it is not wanted).
    """

    problems: tuple[Problem, ...]
    readable: bool
    generation: int = 1
