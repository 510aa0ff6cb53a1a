"""What an older CustomResourceDefinition lacks, found in the document that an API server publishes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lorafleet_operator.core.definitions import KINDS, fitting, schemas, unreadable
from tests.deploy import crd_checker

STATUS: dict[str, Any] = {
    "observedGeneration": 2, "ready": "1/1",
    "placements": [{"replica": "a", "revision": "sha256:x", "state": "Ready", "uid": "u"}],
}  # fmt: skip


def published(kind: str) -> dict[str, Any]:
    """The schema of this release's definition."""
    return copy.deepcopy(crd_checker.schema(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_this_releases_definitions_lack_nothing(kind: str) -> None:
    assert unreadable(kind, published(kind)) == ()


def test_a_status_that_fits_is_left_as_it_is() -> None:
    assert fitting(STATUS, published("LoRAAdapter")) == (STATUS, ())


@pytest.mark.parametrize(("kind", "taken", "lacks"), [
    ("LoRAAdapter", ("spec", "pinned"), (".spec.pinned",)),
    ("LoRAAdapter", ("spec", "copies"), (".spec.copies",)),
    ("BaseModel", ("spec", "engine", "memory"), (".spec.engine.memory",)),
    ("Tenant", ("spec", "quota", "maxAdapters"), (".spec.quota.maxAdapters",)),
])  # fmt: skip
def test_a_missing_field_of_the_spec_is_named_and_what_is_below_it_is_not(
    kind: str, taken: tuple[str, ...], lacks: tuple[str, ...]
) -> None:
    schema = published(kind)
    node = schema
    for name in taken[:-1]:
        node = node["properties"][name]
    del node["properties"][taken[-1]]

    assert unreadable(kind, schema) == lacks


def test_a_status_goes_without_what_has_no_place_in_lists_too() -> None:
    schema = published("LoRAAdapter")
    status = schema["properties"]["status"]["properties"]
    del status["ready"], status["placements"]["items"]["properties"]["uid"]
    fitted, lost = fitting(STATUS, schema)

    placement = {"replica": "a", "revision": "sha256:x", "state": "Ready"}
    assert fitted == {"observedGeneration": 2, "placements": [placement]}
    assert lost == (".status.placements[].uid", ".status.ready")


def test_our_kinds_are_found_and_lists_and_others_kinds_are_not() -> None:
    def of(kind: str, group: str = "lorafleet.dev") -> dict[str, Any]:
        return {"x-kubernetes-group-version-kind": [{"group": group, "kind": kind, "version": "v1alpha1"}]}

    document = {"components": {"schemas": {
        "a": of("Tenant"), "b": of("TenantList"), "c": of("BaseModel", "example.com"), "d": {"type": "object"},
    }}}  # fmt: skip
    assert schemas(document) == {"Tenant": of("Tenant")}
    assert schemas({}) == {}
