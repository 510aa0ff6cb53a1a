"""The columns of `kubectl get` and of `lorafleet get`: one list, which the CRDs repeat (tests/deploy/test_crds.py)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_STEP = re.compile(r'\.(\w+)|\[\?\(@\.(\w+)=="([^"]*)"\)\]')


@dataclass(frozen=True, slots=True)
class Column:
    """A printer column; `priority` 1 is shown with `-o wide` only."""

    name: str
    json_path: str
    type: str = "string"
    priority: int = 0


_READY = '.status.conditions[?(@.type=="Ready")]'
_ACCEPTED = '.status.conditions[?(@.type=="Accepted")]'
_AGE = Column("Age", ".metadata.creationTimestamp", "date")
_COLUMNS = {
    "BaseModel": (
        Column("Serves", ".status.servedName"),
        Column("Ready", ".status.ready"),
        Column("Adapters", ".status.adapters"),
        Column("Status", f"{_READY}.reason"),
        _AGE,
        Column("Revision", ".status.shortRevision", priority=1),
        Column("Message", f"{_READY}.message", priority=1),
    ),
    "LoRAAdapter": (
        Column("Base", ".spec.baseModelRef.name"),
        Column("Serves", ".status.servedName"),
        Column("Ready", ".status.ready"),
        Column("Revision", ".status.shortRevision"),
        Column("Status", f"{_READY}.reason"),
        _AGE,
        Column("Replicas", ".status.replicas", priority=1),
        Column("Message", f"{_READY}.message", priority=1),
    ),
    "Tenant": (
        Column("Weight", ".spec.weight", "integer"),
        Column("Keys", ".status.keys"),
        Column("Adapters", ".status.adapters", "integer"),
        Column("Waiting", ".status.usage.waiting", "integer"),
        Column("Service", ".status.usage.service", "integer"),
        Column("Status", f"{_ACCEPTED}.reason"),
        _AGE,
        Column("Message", f"{_ACCEPTED}.message", priority=1),
    ),
}


def columns(kind: str) -> tuple[Column, ...]:
    """The columns of a kind, in order. Raises KeyError for a kind without any."""
    return _COLUMNS[kind]


def evaluate(json_path: str, document: Mapping[str, Any]) -> Any:
    """The value at a column's path, or None. Knows fields and one filter, `[?(@.name=="value")]`."""
    steps = list(_STEP.finditer(json_path))
    if "".join(step[0] for step in steps) != json_path:
        raise ValueError(f"{json_path!r} is not a path that columns use")
    value: Any = document
    for step in steps:
        if step[1]:
            value = value.get(step[1]) if isinstance(value, Mapping) else None
        else:
            items = value if isinstance(value, list) else []
            value = next((item for item in items if item.get(step[2]) == step[3]), None)
    return value
