"""How much of a tenant's adapter quota is used, oldest adapters first."""

from __future__ import annotations

from lorafleet_operator.core.findings import by_age
from lorafleet_operator.core.objects import Adapter, Artifact, Desired, Observed, Ref


def over_byte_quota(desired: Desired, observed: Observed) -> frozenset[Ref]:
    """The adapters that do not fit into their tenant's `maxAdapterBytes`: they are not loaded, nor again."""
    over: set[Ref] = set()
    for tenant in desired.tenants.values():
        most = tenant.quota.max_adapter_bytes
        if most is None:
            continue
        mine = [a for a in desired.adapters.values() if a.ref.namespace in tenant.namespaces]
        used = 0
        for adapter in by_age(mine):
            size = _size(adapter, observed)
            if used + size > most:
                over.add(adapter.ref)
            else:
                used += size
    return frozenset(over)


def _size(adapter: Adapter, observed: Observed) -> int:
    artifact = observed.artifacts.get(adapter.ref)
    return artifact.bytes if isinstance(artifact, Artifact) else 0
