"""How much of a tenant's adapter quota is used, oldest adapters first."""

from __future__ import annotations

from collections import defaultdict

from lorafleet_operator.core.findings import by_age
from lorafleet_operator.core.objects import Adapter, Artifact, Desired, Observed, Ref


def over_byte_quota(desired: Desired, observed: Observed) -> frozenset[Ref]:
    """The adapters that do not fit into their tenant's `maxAdapterBytes`: they are not loaded, nor again."""
    over: set[Ref] = set()
    limited = [tenant for tenant in desired.tenants.values() if tenant.quota.max_adapter_bytes is not None]
    if not limited:
        return frozenset()
    in_namespace: dict[str, list[Adapter]] = defaultdict(list)
    for adapter in desired.adapters.values():
        in_namespace[adapter.ref.namespace].append(adapter)
    for tenant in limited:
        most = tenant.quota.max_adapter_bytes or 0
        used = 0
        for adapter in by_age([a for namespace in tenant.namespaces for a in in_namespace[namespace]]):
            size = _size(adapter, observed)
            if used + size > most:
                over.add(adapter.ref)
            else:
                used += size
    return frozenset(over)


def _size(adapter: Adapter, observed: Observed) -> int:
    artifact = observed.artifacts.get(adapter.ref)
    return artifact.bytes if isinstance(artifact, Artifact) else 0
