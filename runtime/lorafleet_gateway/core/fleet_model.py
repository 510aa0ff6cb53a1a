"""The fleet and tenants documents as frozen values, and the indexes that make a look-up cheap.

Knows no files: `fleet.py` reads them. Fields that this gateway does not use are ignored, so that an operator
may be newer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from lorafleet_gateway.errors import DocumentError

READY = "Ready"
FAILED = "Failed"
BaseKey = tuple[str, str]
ReplicaKey = tuple[str, str, str]
_Limit = Annotated[int, Meta(ge=1)] | None


class BaseModel(msgspec.Struct, frozen=True, rename="camel"):
    """A base model: its object's name, and what clients call it."""

    namespace: str
    name: str
    served_name: str
    max_model_len: int | None = None

    @property
    def key(self) -> BaseKey:
        return (self.namespace, self.name)


class Replica(msgspec.Struct, frozen=True, rename="camel"):
    """One runtime process. `key` tells a process from the one that later takes its name."""

    name: str
    url: str
    state: str
    incarnation: str = ""

    @property
    def key(self) -> ReplicaKey:
        return (self.name, self.incarnation, self.url)


class Placement(msgspec.Struct, frozen=True, rename="camel"):
    """An adapter's revision on a replica."""

    replica: str
    revision: str
    state: str


class Adapter(msgspec.Struct, frozen=True, rename="camel"):
    """An adapter; `revision` is the one that is wanted, the placements say which ones there are."""

    id: str
    namespace: str
    name: str
    served_name: str
    revision: str = ""
    state: str = ""
    reason: str = ""
    message: str = ""
    placements: tuple[Placement, ...] = ()


class FleetDocument(msgspec.Struct, frozen=True, rename="camel"):
    """What the operator publishes of one base model."""

    version: int
    generation: int
    base_model: BaseModel
    replicas: tuple[Replica, ...] = ()
    adapters: tuple[Adapter, ...] = ()


class ModelRef(msgspec.Struct, frozen=True):
    """A base model that a tenant may call bare."""

    namespace: str
    name: str


class ApiKey(msgspec.Struct, frozen=True):
    """A key's id, for logs, and its SHA-256 in hex."""

    id: str
    sha256: str


class Quota(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """How much a tenant may ask for, over all gateways; None is no limit."""

    requests_per_minute: _Limit = None
    tokens_per_minute: _Limit = None
    max_concurrent_requests: _Limit = None


class Tenant(msgspec.Struct, frozen=True):
    """Who calls: the namespaces whose adapters are theirs, their share and their quota.

    A replica divides by `weight`, so that 0, a negative number or none at all must not get that far."""

    name: str
    weight: Annotated[float, Meta(gt=0)] = 1
    namespaces: tuple[str, ...] = ()
    models: tuple[ModelRef, ...] = ()
    keys: tuple[ApiKey, ...] = ()
    quota: Quota = Quota()


class TenantsDocument(msgspec.Struct, frozen=True):
    """What the operator publishes of all tenants."""

    version: int
    generation: int
    tenants: tuple[Tenant, ...] = ()


@dataclass(frozen=True, slots=True)
class BaseFleet:
    """One fleet document with its look-ups."""

    document: FleetDocument
    replicas: dict[str, Replica]
    by_id: dict[str, Adapter]
    by_served_name: dict[tuple[str, str], Adapter]

    @property
    def base(self) -> BaseModel:
        return self.document.base_model


@dataclass(frozen=True, slots=True)
class Fleet:
    """All base models at one moment, in the order of their keys."""

    bases: tuple[BaseFleet, ...] = ()

    def base(self, key: BaseKey) -> BaseFleet | None:
        """The base model's part, or None when it is gone."""
        return next((fleet for fleet in self.bases if fleet.base.key == key), None)


_Document = TypeVar("_Document", FleetDocument, TenantsDocument)


def decode_fleet(data: bytes) -> BaseFleet:
    """A fleet document from its JSON. Raises DocumentError naming the field."""
    return index(_decode(data, FleetDocument))


def decode_tenants(data: bytes) -> TenantsDocument:
    """The tenants document from its JSON. Raises DocumentError naming the field."""
    return _decode(data, TenantsDocument)


def _decode(data: bytes, kind: type[_Document]) -> _Document:
    try:
        version = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("version", msgspec.Raw(b"null"))
        if bytes(version) != b"1":  # before the fields: another version may have others
            raise DocumentError(f"version is {bytes(version).decode()}, and this gateway reads version 1")
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DocumentError(str(error)) from None


def index(document: FleetDocument) -> BaseFleet:
    """The look-ups of one document. Of two adapters that claim one served name, the lesser id has it."""
    by_served_name: dict[tuple[str, str], Adapter] = {}
    for adapter in sorted(document.adapters, key=lambda adapter: adapter.id):
        by_served_name.setdefault((adapter.namespace, adapter.served_name), adapter)
    return BaseFleet(
        document,
        {replica.name: replica for replica in document.replicas},
        {adapter.id: adapter for adapter in document.adapters},
        by_served_name,
    )


def fleet_of(bases: Iterable[BaseFleet]) -> Fleet:
    """A fleet of these base models, in one order whatever the order given."""
    return Fleet(tuple(sorted(bases, key=lambda fleet: fleet.base.key)))
