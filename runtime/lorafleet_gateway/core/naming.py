"""What a tenant's `model` means: an adapter of its own, a base model it may call, or nothing.

Another tenant's adapter is nothing: the answer does not differ from that for a name that nobody uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lorafleet_gateway.core.fleet_model import Adapter, BaseFleet, BaseKey, Fleet, Tenant
from lorafleet_gateway.core.routing import holders


@dataclass(frozen=True, slots=True)
class Target:
    """A resolved name. `served_name` is the client's word, `wire_name` the replica's."""

    base: BaseKey
    adapter_id: str | None
    served_name: str
    wire_name: str


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One row of `/v1/models`; `parent` is the base's served name for an adapter, else None."""

    served_name: str
    parent: str | None
    max_model_len: int | None
    ready: bool


def resolve(model: str, tenant: Tenant, fleet: Fleet) -> Target | None:
    """The tenant's adapter of that served name, else the base model of that name that it may call, else None.

    An adapter wins over a base model; of several, the first in the order of the tenant's namespaces, then of
    base models."""
    for namespace in tenant.namespaces:
        for part in fleet.bases:
            adapter = part.by_served_name.get((namespace, model))
            if adapter is not None:
                return Target(part.base.key, adapter.id, model, adapter.id)
    for part in _allowed(tenant, fleet):
        if part.base.served_name == model:
            return Target(part.base.key, None, model, model)
    return None


def list_models(tenant: Tenant, fleet: Fleet) -> list[ListedModel]:
    """Every name that resolves for the tenant, once, base models first, each with whether a replica can serve
    it now."""
    adapters = dict(_adapters(tenant, fleet))
    rows = [
        ListedModel(part.base.served_name, None, part.base.max_model_len, bool(holders(part, None)))
        for part in _allowed(tenant, fleet)
        if part.base.served_name not in adapters
    ]
    rows += [
        ListedModel(name, part.base.served_name, part.base.max_model_len, bool(holders(part, adapter)))
        for name, (part, adapter) in sorted(adapters.items())
    ]
    return list({row.served_name: row for row in reversed(rows)}.values())[::-1]


def _allowed(tenant: Tenant, fleet: Fleet) -> Iterator[BaseFleet]:
    allowed = {(model.namespace, model.name) for model in tenant.models}
    return (part for part in fleet.bases if part.base.key in allowed)


def _adapters(tenant: Tenant, fleet: Fleet) -> Iterator[tuple[str, tuple[BaseFleet, Adapter]]]:
    # Reversed, because in a dict the last one stays, and `resolve` takes the first.
    for namespace in reversed(tenant.namespaces):
        for part in reversed(fleet.bases):
            for (owner, name), adapter in part.by_served_name.items():
                if owner == namespace:
                    yield name, (part, adapter)
