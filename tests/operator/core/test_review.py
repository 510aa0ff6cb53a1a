"""What the API is asked to refuse before it is stored: what is wrong now, and nothing that may come right."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from lorafleet_operator.core.objects import AllowedNamespaces, Desired, ObjectKey, Quota, Ref, SetAside
from lorafleet_operator.core.review import NOT_READ_YET, Review, review
from lorafleet_sim.fleets import BASE, adapter, base_model, desired, secret, tenant

OPEN = base_model(allowed_namespaces=AllowedNamespaces("All"))
ACME = tenant(models=(BASE,))
FLEET = desired(OPEN, adapter(), ACME, secret())
Object = dict[str, Any]


def lora(name: str = "new", namespace: str = "acme", **spec: Any) -> Object:
    base = {"name": BASE.name, "namespace": BASE.namespace}
    return document("LoRAAdapter", name, namespace, {"baseModelRef": base, "source": {"uri": "https://x/y"}, **spec})


def model(name: str = "new", namespace: str = "models", **spec: Any) -> Object:
    return document("BaseModel", name, namespace, {"source": {"uri": "package://weights/base.gguf"}, **spec})


def owner(name: str = "new", *namespaces: str, secret: str = "", **spec: Any) -> Object:
    key = {"secretRef": {"namespace": secret or name, "name": f"{secret or name}-key", "key": "key"}}
    return document("Tenant", name, "", {"namespaces": list(namespaces), "apiKeys": [key], **spec})


def document(kind: str, name: str, namespace: str, spec: Object, **metadata: Any) -> Object:
    where = {"namespace": namespace} if namespace else {}
    metadata = {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z", **where, **metadata}
    return {"apiVersion": "lorafleet.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


@pytest.mark.parametrize(("fleet", "new", "says"), [
    (FLEET, lora(servedName="pirate"), "'pirate' is already served by LoRAAdapter acme/pirate in tenant acme"),
    (FLEET, lora(servedName="smollm2-135m"), "is the served name of BaseModel models/smollm2, which Tenant"),
    (desired(base_model()), lora(), ".spec.baseModelRef: BaseModel models/smollm2 takes no adapters from"),
    (FLEET, lora(source={"uri": "pvc://shelf/x"}), "uri: BaseModel models/smollm2 declares no artifact volume"),
    (FLEET, lora(merge="Always"), "LoRAAdapter acme/new: .spec.merge: this runtime does not merge"),
    (desired(OPEN, adapter(), tenant(quota=Quota(max_adapters=1)), secret()), lora(), "Tenant acme may have 1 adapter"),
    (FLEET, model(servedName="smollm2-135m"), "is already served by BaseModel models/smollm2: choose another name"),
    (FLEET, model(engine={"memoryFraction": 0.5}), ".spec.engine.memoryFraction: a replica's"),
    (FLEET, owner("bolt", "acme"), ".spec.namespaces[0]: namespace acme already belongs to Tenant acme"),
    (FLEET, owner("bolt", "bolt", secret="acme"), "the key in Secret acme/acme-key is also Tenant acme's"),
])  # fmt: skip
def test_what_breaks_a_rule_now_is_refused_in_the_words_of_conditions(fleet: Desired, new: Object, says: str) -> None:
    found = review(fleet, new)

    assert not found.allowed
    assert [says in sentence for sentence in found.refusals] == [True], found
    assert found.refusals[0].startswith(f"{new['kind']} ")


def test_a_tenant_with_a_key_of_its_own_may_not_bring_another_tenants_along() -> None:
    both = owner("bolt", "bolt")
    both["spec"]["apiKeys"] += owner("bolt", "bolt", secret="acme")["spec"]["apiKeys"]
    found = review(FLEET, both)

    assert len(found.refusals) == 1
    assert "is also Tenant acme's" in found.refusals[0]
    assert [found.refusals[0] in warning for warning in found.warnings] == [False] * len(found.warnings)


@pytest.mark.parametrize(("fleet", "new", "says"), [
    (desired(), lora(), "there is no BaseModel models/smollm2"),
    (replace(FLEET, base_models={}, set_aside={ObjectKey("BaseModel", "models", "smollm2"): SetAside((), False)}),
     lora(), "BaseModel models/smollm2 cannot be read now"),
    (FLEET, owner("bolt", "bolt", models=[{"namespace": "models", "name": "gone"}]), "no BaseModel models/gone"),
    (replace(FLEET, secrets={Ref("acme", "acme-key"): replace(secret(), data={"other": b"x"})}),
     owner("bolt", "bolt", secret="acme"), "has no key 'key' (it has other)"),
    (replace(FLEET, complete=False), lora(servedName="pirate"), NOT_READ_YET),
    (FLEET, lora(copies={"min": 0}), "lorafleet's operator cannot read this: LoRAAdapter acme/new: .spec.copies.min"),
    (FLEET, lora(futureField=1), ".spec.futureField"),
    (desired(OPEN, adapter(), adapter("b", served_name="smollm2-135m")),
     owner("acme", "acme", models=[{"namespace": "models", "name": "smollm2"}]),
     "with this, another object is refused: LoRAAdapter acme/b: .spec.servedName: 'smollm2-135m' is the served name"),
])  # fmt: skip
def test_what_may_come_right_or_cannot_be_judged_is_a_warning(fleet: Desired, new: Object, says: str) -> None:
    found = review(fleet, new)

    assert found.allowed, found
    assert any(says in sentence for sentence in found.warnings), found


@pytest.mark.parametrize("new", [
    lora(), model(), owner("bolt", "bolt"), lora(namespace="elsewhere", servedName="pirate"),
    {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x", "namespace": "acme"}},
], ids=str)  # fmt: skip
def test_about_what_is_sound_nothing_is_said(new: Object) -> None:
    assert review(FLEET, new) == Review()


def test_the_newcomer_is_refused_though_its_name_comes_first_and_its_clock_is_wrong() -> None:
    early = lora("aaa", servedName="pirate")
    early["metadata"]["creationTimestamp"] = "1999-01-01T00:00:00Z"

    assert not review(FLEET, early).allowed


def test_nobody_takes_by_an_update_what_a_younger_object_serves() -> None:
    old = lora("elder")
    fleet = desired(OPEN, adapter(created="2027-01-01T00:00:00Z"), adapter("elder"), ACME, secret())

    found = review(fleet, lora("elder", servedName="pirate"), old)

    assert "already served by LoRAAdapter acme/pirate" in found.refusals[0]


CONFLICTING = desired(OPEN, adapter(), adapter("twin", served_name="pirate"), ACME, secret())
TWIN = lora("twin", servedName="pirate")


@pytest.mark.parametrize("new", [
    document("LoRAAdapter", "twin", "acme", TWIN["spec"], finalizers=["x/y"], labels={"a": "b"}),
    {**TWIN, "status": {"ready": "0/1"}},
    lora("twin", servedName="pirate", copies={"min": 2}),
    lora("twin", servedName="other"),
], ids=["metadata", "status", "another field", "the way out"])  # fmt: skip
def test_an_object_that_breaks_a_rule_already_may_be_edited(new: Object) -> None:
    assert review(CONFLICTING, new, TWIN).allowed


def test_an_object_that_breaks_one_rule_may_not_break_another() -> None:
    worse = review(CONFLICTING, lora("twin", servedName="pirate", merge="Always"), TWIN)

    assert [".spec.merge" in sentence for sentence in worse.refusals] == [True]


def test_a_setting_that_others_depend_on_may_be_taken_away_with_a_warning() -> None:
    old = model("smollm2", servedName="smollm2-135m", allowedNamespaces={"from": "All"})
    many = desired(OPEN, *(adapter(f"a{i}") for i in range(8)))
    narrowed = review(many, model("smollm2", servedName="smollm2-135m"), old)

    assert narrowed.allowed
    assert "with this, another object is refused: LoRAAdapter acme/a0" in narrowed.warnings[0]
    assert narrowed.warnings[-1] == "with this, 3 more objects are refused"


def test_a_review_among_ten_thousand_adapters_takes_milliseconds() -> None:
    tenants = [tenant(f"t{i}", (f"ns{i}",)) for i in range(500)]
    secrets = [secret(f"t{i}", f"sk-{i}".encode()) for i in range(500)]
    adapters = [adapter(f"a{i}", f"ns{i % 500}") for i in range(10_000)]
    fleet = desired(OPEN, *adapters, *tenants, *secrets)
    begun = time.process_time()
    for index in range(10):
        assert review(fleet, lora(f"new{index}", "ns7")).clean

    assert (time.process_time() - begun) / 10 < 0.1
