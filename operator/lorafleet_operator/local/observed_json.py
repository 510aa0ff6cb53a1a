"""What a running fleet sees of its replicas, as JSON and back: `lorafleet plan` plans against it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from lorafleet_operator.core.objects import Observed, Ref, Replica, Resident


def to_json(observed: Observed) -> dict[str, Any]:
    """The replicas and the waits; artifacts are resolved anew by whoever reads."""
    return {
        "replicas": [asdict(observed.replicas[name]) for name in sorted(observed.replicas)],
        "loadRetryAt": [
            {"adapter": ref, "replica": replica, "at": at}
            for (ref, replica), at in sorted(observed.load_retry_at.items())
        ],
    }


def from_json(document: Any) -> Observed:
    """Inverse of `to_json`; another version's fields are left out, and what is no such document is an empty fleet."""
    if not isinstance(document, Mapping):
        return Observed()
    try:
        replicas = [_replica(item) for item in document["replicas"]]
        waits = {(Ref(*w["adapter"]), str(w["replica"])): float(w["at"]) for w in document["loadRetryAt"]}
    except (KeyError, TypeError, ValueError):
        return Observed()
    return Observed(replicas={replica.name: replica for replica in replicas}, load_retry_at=waits)


def _replica(item: Mapping[str, Any]) -> Replica:
    known = {field.name for field in fields(Replica)}
    residents = tuple(_resident(resident) for resident in item["residents"])
    rest = {name: value for name, value in item.items() if name in known}
    return Replica(**{**rest, "base": Ref(*item["base"]), "residents": residents})


def _resident(item: Mapping[str, Any]) -> Resident:
    known = {field.name for field in fields(Resident)}
    rest = {name: value for name, value in item.items() if name in known}
    return Resident(**{**rest, "adapter": Ref(*item["adapter"])})
