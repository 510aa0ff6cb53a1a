"""The CRDs and core.api are two readings of one schema: they accept, refuse and default alike."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lorafleet_operator.core import api
from lorafleet_operator.core.columns import columns
from lorafleet_operator.core.fields import Fields, Sink
from lorafleet_operator.core.objects import Problems


def _beside(name: str) -> ModuleType:
    """A helper module in this folder; test modules are imported by path, so it has no package to be found in."""
    spec = importlib.util.spec_from_file_location(f"deploy_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


checker = _beside("crd_checker")
documents = _beside("documents")
KINDS = tuple(checker.FILES)


def refusals(document: dict[str, Any]) -> list[str]:
    found = api.read(document)
    return [str(problem) for problem in found.problems] if isinstance(found, Problems) else []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [lambda kind: documents.FULL[kind], documents.minimal], ids=["full", "minimal"])
def test_the_full_and_the_shortest_document_are_accepted_by_both(kind: str, make: Any) -> None:
    assert checker.errors(kind, make(kind)) == []
    assert refusals(make(kind)) == []


@pytest.mark.parametrize(("kind", "path", "value"), documents.GOOD, ids=str)
def test_a_good_value_is_accepted_by_both(kind: str, path: str, value: Any) -> None:
    document = documents.changed(kind, path, value)

    assert checker.errors(kind, document) == []
    assert refusals(document) == []


@pytest.mark.parametrize(("kind", "path", "value", "named"), documents.BAD, ids=str)
def test_a_bad_value_is_refused_by_both_and_the_message_says_what_to_do(
    kind: str, path: str, value: Any, named: str
) -> None:
    document = documents.changed(kind, path, value)

    assert checker.errors(kind, document) != []
    assert named in "\n".join(refusals(document))


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_of_the_crd_are_the_defaults_of_core_api(kind: str) -> None:
    short = documents.minimal(kind)

    assert api.read(checker.defaulted(kind, short)) == api.read(short)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_the_crd_is_read_by_core_api_and_the_other_way_round(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sinks: list[Sink] = []

    class Recording(Sink):
        def __init__(self, where: str) -> None:
            super().__init__(where)
            sinks.append(self)

    monkeypatch.setattr(api, "Sink", Recording)
    full = documents.FULL["BaseModel"]["spec"]["fairness"]
    for fairness in (full, {"policy": "DRR", "quantum": 1, "cost": documents.PIECEWISE}):
        path, value = ("fairness", fairness) if kind == "BaseModel" else ("ignored", documents.ABSENT)
        assert not isinstance(api.read(documents.changed(kind, path, value)), Problems)

    known = {path for sink in sinks for path in sink.known if path.startswith(".spec.")}
    in_crd = {path for path, _ in checker.nodes(checker.schema(kind)) if path.startswith(".spec.")}
    maps = {path.removesuffix(".*") for path in in_crd if path.endswith(".*")}
    known = {path for path in known if not any(path.startswith(f"{root}.") for root in maps)}
    assert known == {path for path in in_crd if not path.endswith(("[]", ".*"))}


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_a_description(kind: str) -> None:
    # The API server forbids anything but restrictions of the name on `metadata`.
    silent = [path for path, node in checker.nodes(checker.schema(kind)) if not node.get("description")]

    assert silent == [".metadata"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_string_list_and_map_is_bounded(kind: str) -> None:
    def bounded(node: dict[str, Any]) -> bool:
        if node.get("type") == "string" or node.get("x-kubernetes-int-or-string"):
            return "maxLength" in node or "enum" in node or node.get("format") == "date-time"
        if node.get("type") == "array":
            return "maxItems" in node
        return "maxProperties" in node if "additionalProperties" in node else True

    assert [path for path, node in checker.nodes(checker.schema(kind)) if not bounded(node)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_are_structural(kind: str) -> None:
    for path, node in checker.nodes(checker.schema(kind)):
        assert ("type" in node) != bool(node.get("x-kubernetes-int-or-string")), path
        assert not {"oneOf", "allOf", "not", "$ref"} & node.keys(), path
        assert not {"properties", "additionalProperties"} <= node.keys(), path
        if "anyOf" in node:
            assert node["anyOf"] == [{"type": "integer"}, {"type": "string"}], path
        for key in node.get("x-kubernetes-list-map-keys", ()):
            assert key in node["items"]["required"], path


@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_says_what_is_wrong_and_holds_for_the_full_document(kind: str) -> None:
    rules = [
        rule
        for _, node in [("", checker.schema(kind)), *checker.nodes(checker.schema(kind))]
        for rule in node.get("x-kubernetes-validations", ())
    ]

    assert rules
    assert all(rule["message"] and checker.program(rule["rule"]) for rule in rules)


@pytest.mark.parametrize("kind", KINDS)
def test_printer_columns_are_those_of_lorafleet_get(kind: str) -> None:
    printed = checker.version(kind)["additionalPrinterColumns"]

    assert [dataclasses.asdict(column) for column in columns(kind)] == [
        {"name": c["name"], "json_path": c["jsonPath"], "type": c["type"], "priority": c.get("priority", 0)}
        for c in printed
    ]


@pytest.mark.parametrize(("kind", "short", "scope"), [
    ("BaseModel", "bm", "Namespaced"), ("LoRAAdapter", "lad", "Namespaced"), ("Tenant", "ten", "Cluster"),
])  # fmt: skip
def test_names_scope_and_subresources(kind: str, short: str, scope: str) -> None:
    spec = checker.crd(kind)["spec"]

    assert (spec["names"]["kind"], spec["names"]["shortNames"], spec["scope"]) == (kind, [short], scope)
    assert spec["names"]["categories"] == ["lorafleet"]
    assert checker.crd(kind)["metadata"]["name"] == f"{spec['names']['plural']}.lorafleet.dev"
    assert checker.version(kind)["subresources"]["status"] == {}
    assert ("scale" in checker.version(kind)["subresources"]) == (kind == "BaseModel")


@pytest.mark.parametrize(("kind", "path", "value", "refused"), [
    ("BaseModel", "servedName", "other", True),
    ("BaseModel", "servedName", documents.ABSENT, True),
    ("BaseModel", "replicas", 5, False),
    ("LoRAAdapter", "baseModelRef", {"namespace": "models", "name": "other"}, True),
    ("LoRAAdapter", "servedName", "buccaneer", False),
    ("LoRAAdapter", "source", {"uri": "s3://bucket/pirate-2"}, False),
])  # fmt: skip
def test_only_what_must_not_change_is_immutable(kind: str, path: str, value: Any, refused: bool) -> None:
    found = checker.errors(kind, documents.changed(kind, path, value), old=documents.FULL[kind])

    assert ["immutable" in message for message in found] == [True] * refused


@pytest.mark.parametrize(("kind", "most"), [("BaseModel", 52), ("LoRAAdapter", 128), ("Tenant", 63)])
def test_long_names_are_refused_by_both(kind: str, most: int) -> None:
    for length, refused in ((most, False), (most + 1, True)):
        document = {**documents.minimal(kind)}
        document["metadata"] = {**document["metadata"], "name": "n" * length}

        assert bool(checker.errors(kind, document)) == refused
        assert bool(refusals(document)) == refused


def test_a_reader_of_fields_that_nobody_declared_would_be_noticed() -> None:
    sink = Sink("a document")
    Fields({"x": 1}, ".spec", sink).take("x")

    assert sink.known == {".spec.x"}
