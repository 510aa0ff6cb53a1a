"""What an API server checks of a custom resource, without one: pruning, defaults, the schema, and the CEL rules."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import celpy
import jsonschema
import yaml

CRDS = Path(__file__).parents[2] / "crds"
FILES = {"BaseModel": "basemodel.yaml", "LoRAAdapter": "loraadapter.yaml", "Tenant": "tenant.yaml"}
# CEL reserves these words: a rule reaches a field of that name as __name__.
RESERVED = {"namespace", "package", "const", "let", "var", "void", "function", "import", "loop", "return"}


@cache
def crd(kind: str) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    found: dict[str, Any] = yaml.safe_load((CRDS / FILES[kind]).read_text())
    return found


def version(kind: str) -> dict[str, Any]:
    """Its only version."""
    (only,) = crd(kind)["spec"]["versions"]
    found: dict[str, Any] = only
    return found


def schema(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = version(kind)["schema"]["openAPIV3Schema"]
    return found


def defaulted(kind: str, document: dict[str, Any]) -> dict[str, Any]:
    """The document as the API server stores it: nulls gone, defaults filled in."""
    stored: dict[str, Any] = _defaults(schema(kind), _pruned(copy.deepcopy(document)))
    return stored


def errors(kind: str, document: dict[str, Any], old: dict[str, Any] | None = None) -> list[str]:
    """Why an API server would refuse the document (an update of `old`); unknown fields as kubectl's strict check."""
    stored = defaulted(kind, document)
    validator = jsonschema.Draft202012Validator(_strict(schema(kind), root=True))
    found = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(stored)]
    if found:
        return found  # the API server, too, runs CEL only on what fits the schema
    return list(_broken_rules(schema(kind), stored, None if old is None else defaulted(kind, old), "$"))


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(item) for key, item in value.items() if item is not None}
    return value


def _defaults(node: dict[str, Any], value: Any) -> Any:
    if isinstance(value, dict):
        for name, child in node.get("properties", {}).items():
            if name not in value and "default" in child:
                value[name] = copy.deepcopy(child["default"])
            if name in value:
                value[name] = _defaults(child, value[name])
    if isinstance(value, list) and "items" in node:
        return [_defaults(node["items"], item) for item in value]
    return value


def _strict(node: dict[str, Any], *, root: bool = False) -> dict[str, Any]:
    """The schema with every object closed; metadata is the API server's own."""
    closed = {key: value for key, value in node.items() if not key.startswith("x-")}
    if "properties" in node:
        closed["properties"] = {
            name: child if root and name == "metadata" else _strict(child) for name, child in node["properties"].items()
        }
        closed["additionalProperties"] = False
    if "items" in node:
        closed["items"] = _strict(node["items"])
    if isinstance(node.get("additionalProperties"), dict):
        closed["additionalProperties"] = _strict(node["additionalProperties"])
    return closed


def _broken_rules(node: dict[str, Any], value: Any, old: Any, path: str) -> Iterator[str]:
    for rule in node.get("x-kubernetes-validations", ()):
        transition = "oldSelf" in rule["rule"]
        if (not transition or old is not None) and not holds(rule["rule"], value, old):
            yield f"{path}: {rule['message']}"
    if isinstance(value, dict):
        for name, child in node.get("properties", {}).items():
            if name in value:
                before = old.get(name) if isinstance(old, dict) else None
                yield from _broken_rules(child, value[name], before, f"{path}.{name}")
    if isinstance(value, list) and "items" in node:
        for index, item in enumerate(value):
            yield from _broken_rules(node["items"], item, None, f"{path}[{index}]")


@cache
def program(rule: str) -> celpy.Runner:
    """A compiled CEL rule."""
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def holds(rule: str, value: Any, old: Any) -> bool:
    """Does a CEL rule hold for this value?"""
    context = {"self": celpy.json_to_cel(_escaped(value))}
    if old is not None:
        context["oldSelf"] = celpy.json_to_cel(_escaped(old))
    return bool(program(rule).evaluate(context))


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {f"__{key}__" if key in RESERVED else key: _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list) else value


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema node below `node` with its field path; list items are `[]`, map values `.*`."""
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from nodes(child, f"{path}.{name}")
    if "items" in node:
        yield f"{path}[]", node["items"]
        yield from nodes(node["items"], f"{path}[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield f"{path}.*", node["additionalProperties"]
