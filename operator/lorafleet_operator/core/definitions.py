"""What the cluster's CustomResourceDefinitions know of what this release reads and writes. Pure.

An older definition has no place for newer fields: the API server refuses a status that has one, whole. So a status goes
without them, and whoever runs the cluster is told which definition is old.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorafleet_operator.core import api

GROUP = api.GROUP_VERSION.partition("/")[0]
KINDS = ("BaseModel", "LoRAAdapter", "Tenant")

Schema = Mapping[str, Any]


def schemas(openapi: Mapping[str, Any]) -> dict[str, Schema]:
    """The schema of each of our kinds, from the document that an API server publishes for our group."""
    published = (openapi.get("components") or {}).get("schemas") or {}
    found: dict[str, Schema] = {}
    for schema in published.values():
        for of in schema.get("x-kubernetes-group-version-kind") or ():
            if of.get("group") == GROUP and of.get("kind") in KINDS:
                found[of["kind"]] = schema
    return found


def unreadable(kind: str, schema: Schema) -> tuple[str, ...]:
    """The fields of `spec` that this release reads and the definition does not know: nobody can set them."""
    paths = sorted(path for path in api.fields_of(kind) if not _knows(schema, path))
    return tuple(path for path in paths if path.rpartition(".")[0] not in paths)


def fitting(status: Mapping[str, Any], schema: Schema) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The status without what the definition does not know, and the paths of that."""
    lost: list[str] = []
    place = (schema.get("properties") or {}).get("status") or {}
    return _fitted(status, place, ".status", lost), tuple(sorted(set(lost)))


def _knows(schema: Schema, path: str) -> bool:
    for name in path.strip(".").split("."):
        known = schema.get("properties")
        if known is None:  # a map: every name is good
            return True
        if name not in known:
            return False
        schema = known[name]
    return True


def _fitted(value: Any, schema: Schema, path: str, lost: list[str]) -> Any:
    known = schema.get("properties")
    if isinstance(value, Mapping) and known is not None:
        lost += [f"{path}.{name}" for name in value if name not in known]
        return {n: _fitted(v, known[n], f"{path}.{n}", lost) for n, v in value.items() if n in known}
    if isinstance(value, list) and "items" in schema:
        return [_fitted(item, schema["items"], f"{path}[]", lost) for item in value]
    return value
