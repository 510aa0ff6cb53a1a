"""What gateways are told: the fleet document of one base model and the tenants document (docs/contracts.md).

Hashes of keys, never keys. The caller owns `generation`: it grows when `differs` says that the content changed.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

from lorafleet_operator.core.objects import (
    Adapter,
    Artifact,
    BaseModel,
    Desired,
    Observed,
    Ref,
    Replica,
    Resident,
    Tenant,
    Unresolved,
)
from lorafleet_operator.core.placement import PERMANENT, Here, Holder, whereabouts
from lorafleet_operator.core.remembered import Remembered
from lorafleet_operator.core.tenant_keys import key_material

VERSION = 1
Entry = dict[str, Any]
REPLICA_STATES = {"Gone": "Failed"}  # gateways know no process that is gone but will be back


def fleet_documents(
    desired: Desired, observed: Observed, generation: Callable[[BaseModel], int],
    remembered: Remembered[Ref, Entry] | None = None,
) -> dict[Ref, dict[str, Any]]:  # fmt: skip
    """The fleet document of every base model; `generation` says which number its next one has.

    `remembered` are the adapters' entries of the last time.
    """
    adapters: dict[Ref, list[Entry]] = defaultdict(list)
    replicas: dict[Ref, list[Replica]] = defaultdict(list)
    for replica in sorted(observed.replicas.values(), key=lambda r: (r.index, r.name)):
        replicas[replica.base].append(replica)
    placed, entries = whereabouts(observed.replicas.values()), remembered or Remembered()
    for ref in sorted(desired.adapters):
        adapter = desired.adapters[ref]
        facts = adapter, observed.artifacts.get(ref), placed[adapter.base].get(ref, ())
        adapters[adapter.base].append(entries.value(ref, facts, partial(_adapter, *facts)))
    entries.keep(desired.adapters)
    return {
        ref: {
            "version": VERSION,
            "generation": generation(base),
            "baseModel": {
                "namespace": ref.namespace,
                "name": ref.name,
                "servedName": base.served_name,
                "maxModelLen": base.engine.max_model_len,
            },
            "replicas": [_replica(replica) for replica in replicas[ref]],
            "adapters": adapters[ref],
        }
        for ref, base in desired.base_models.items()
    }


def tenants_document(desired: Desired, generation: int) -> dict[str, Any]:
    """The tenants document. A tenant or key that cannot be used is absent."""
    tenants = [_tenant(desired.tenants[name], desired) for name in sorted(desired.tenants)]
    return {"version": VERSION, "generation": generation, "tenants": tenants}


def differs(document: Mapping[str, Any], published: Mapping[str, Any] | None) -> bool:
    """Does the content differ from what is published? The generation does not count."""
    if published is None:
        return True
    return {**document, "generation": 0} != {**published, "generation": 0}


def urgent(document: Mapping[str, Any], published: Mapping[str, Any] | None) -> bool:
    """Does the difference decide where a request goes? That an adapter is on its way may be told a moment later."""
    return published is None or _routes(document) != _routes(published)


def _routes(document: Mapping[str, Any]) -> tuple[Any, ...]:
    placed = [
        (adapter["id"], adapter["servedName"], adapter["state"], adapter["reason"],
         [p for p in adapter["placements"] if p["state"] == "Ready"])
        for adapter in document.get("adapters", ()) if adapter["state"] != "Loading"
    ]  # fmt: skip
    return document.get("baseModel"), document.get("replicas"), document.get("tenants"), placed


def key_hash(material: bytes) -> str:
    """Hex of the SHA-256 of a key: all that a gateway needs to recognise it."""
    return hashlib.sha256(material).hexdigest()


def _replica(replica: Replica) -> dict[str, Any]:
    return {
        "name": replica.name,
        "incarnation": replica.incarnation,
        "url": replica.url,
        "state": REPLICA_STATES.get(replica.state, replica.state),
    }


def _adapter(adapter: Adapter, source: Artifact | Unresolved | None, here: Here) -> Entry:
    revision = source.revision if isinstance(source, Artifact) else ""
    placed = [
        (replica, found)
        for replica, residents in groupby(here, key=itemgetter(0))
        if (found := serving_resident((resident for _, resident in residents), revision))
    ]
    reason, message = _failure(source, placed)
    if any(resident.state == "Ready" for replica, resident in placed if replica.state in ("Ready", "Draining")):
        state, reason, message = "Ready", "", ""
    else:
        state = "Failed" if reason else "Loading"
    return {
        "id": adapter.ref.wire_id,
        "namespace": adapter.ref.namespace,
        "name": adapter.ref.name,
        "servedName": adapter.served_name,
        "revision": revision,
        "state": state,
        "reason": reason,
        "message": message,
        "placements": [
            {"replica": replica.name, "revision": resident.revision, "state": resident.state}
            for replica, resident in placed
        ],
    }


def serving_resident(residents: Iterable[Resident], revision: str) -> Resident | None:
    """The one entry that says what a replica does with an adapter: what serves, newest first, then what comes."""
    order = {"Ready": 0, "Loading": 1, "Pending": 1, "Failed": 2, "Draining": 3}
    return min(residents, key=lambda r: (order[r.state], r.revision != revision, r.revision), default=None)


def _failure(source: Artifact | Unresolved | None, placed: Iterable[tuple[Holder, Resident]]) -> tuple[str, str]:
    """Why clients need not wait for this adapter; empty while waiting makes sense."""
    if isinstance(source, Unresolved):
        return source.reason, source.message
    failed = [resident for _, resident in placed if resident.state == "Failed"]
    coming = any(resident.state in ("Loading", "Pending") for _, resident in placed)
    final = [resident for resident in failed if resident.reason in PERMANENT]
    if not failed or (coming and not final):
        return "", ""
    chosen = (final or failed)[0]
    return chosen.reason or "LoadFailed", chosen.message


def _tenant(tenant: Tenant, desired: Desired) -> dict[str, Any]:
    keys = []
    for ref in tenant.api_keys:
        material = key_material(desired, ref)
        if material is not None:
            keys.append({"id": f"{ref.namespace}/{ref.name}", "sha256": key_hash(material)})
    quota = {
        "requestsPerMinute": tenant.quota.requests_per_minute,
        "tokensPerMinute": tenant.quota.tokens_per_minute,
        "maxConcurrentRequests": tenant.quota.max_concurrent_requests,
    }
    return {
        "name": tenant.name,
        "weight": tenant.weight,
        "namespaces": sorted(tenant.namespaces),
        "models": [{"namespace": ref.namespace, "name": ref.name} for ref in tenant.models],
        "keys": keys,
        "quota": {name: limit for name, limit in quota.items() if limit is not None},
    }
