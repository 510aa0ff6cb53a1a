"""Rules between objects: who is set aside, why, and that nobody else is harmed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lorafleet_operator.core.objects import (
    AllowedNamespaces,
    Desired,
    ObjectKey,
    Problem,
    Quota,
    Ref,
    Secret,
    SecretKeyRef,
    SetAside,
)
from lorafleet_operator.core.validation import admit, check
from lorafleet_sim.fleets import BASE, adapter, base_model, desired, secret, tenant

ALL = AllowedNamespaces("All")
OPEN = base_model(allowed_namespaces=ALL)
ACME = tenant(models=(BASE,))
GOOD = (OPEN, adapter(), ACME, secret())


def aside(wanted: Desired) -> dict[str, list[str]]:
    """Reasons by object."""
    return {str(key): [p.reason for p in entry.problems] for key, entry in admit(wanted).set_aside.items()}


def test_a_sound_fleet_is_admitted_as_it_is() -> None:
    assert admit(desired(*GOOD)) == desired(*GOOD)
    assert check(desired(*GOOD)) == {}


@pytest.mark.parametrize(("objects", "expected"), [
    ((adapter(),), {"LoRAAdapter acme/pirate": ["BaseModelNotFound"]}),
    ((base_model(), adapter()), {"LoRAAdapter acme/pirate": ["NamespaceNotAllowed"]}),
    ((base_model(), adapter(namespace="models")), {}),
    ((OPEN, adapter(), adapter("b", served_name="pirate")), {"LoRAAdapter acme/pirate": ["ServedNameConflict"]}),
    ((OPEN, adapter(), adapter(namespace="other")), {}),
    ((OPEN, adapter(), adapter(namespace="dev"), tenant(namespaces=("acme", "dev")), secret()),
     {"LoRAAdapter dev/pirate": ["ServedNameConflict"]}),
    ((OPEN, adapter(served_name="smollm2-135m"), ACME, secret()), {"LoRAAdapter acme/pirate": ["ServedNameConflict"]}),
    ((OPEN, adapter(served_name="smollm2-135m"), tenant(), secret()), {}),
    ((OPEN, adapter(uri="pvc://shelf/pirate")), {"LoRAAdapter acme/pirate": ["VolumeNotDeclared"]}),
    ((replace(OPEN, runtime={"artifactVolumes": [{"name": "shelf"}]}), adapter(uri="pvc://shelf/pirate")), {}),
    ((OPEN, adapter(), adapter("z"), tenant(quota=Quota(max_adapters=1)), secret()),
     {"LoRAAdapter acme/z": ["QuotaExceeded"]}),
    ((base_model(), base_model(ref=Ref("models", "zz"), served_name="smollm2-135m")),
     {"BaseModel models/zz": ["ServedNameConflict"]}),
    ((base_model(), base_model(ref=Ref("other", "smollm2"))), {}),
    ((tenant(),), {"Tenant acme": ["KeyMissing"]}),
    ((tenant(), Secret(Ref("acme", "acme-key"), {"token": b"x"})), {"Tenant acme": ["KeyMissing"]}),
    ((tenant(), secret(value=b" \n")), {"Tenant acme": ["KeyMissing"]}),
    ((tenant(api_keys=()),), {}),
    ((tenant(), secret(), tenant("bolt", ("acme",)), secret("bolt", b"sk-bolt")),
     {"Tenant bolt": ["NamespaceConflict"]}),
    ((tenant(), secret(), tenant("bolt", ("bolt",)), secret("bolt", b"sk-acme\n")),
     {"Tenant acme": ["KeyConflict"], "Tenant bolt": ["KeyConflict"]}),
])  # fmt: skip
def test_whoever_breaks_a_rule_is_set_aside(objects: tuple[object, ...], expected: dict[str, list[str]]) -> None:
    assert aside(desired(*objects)) == expected  # type: ignore[arg-type]  # the table holds objects


def test_the_oldest_of_those_that_conflict_wins() -> None:
    young, old = adapter("a", served_name="x", created="2026-02-01T00:00:00Z"), adapter(
        "b", served_name="x", created="2026-01-01T00:00:00Z")  # fmt: skip

    assert aside(desired(OPEN, young, old)) == {"LoRAAdapter acme/a": ["ServedNameConflict"]}


def test_what_a_refused_object_claims_stays_free() -> None:
    nobody = tenant("aaa", ("acme",), api_keys=(SecretKeyRef("x", "missing", "key"),))
    lost = adapter("a", served_name="pirate", base=Ref("models", "gone"))

    assert aside(desired(*GOOD, nobody, lost)) == {
        "Tenant aaa": ["KeyMissing"], "LoRAAdapter acme/a": ["BaseModelNotFound"],
    }  # fmt: skip


def test_one_missing_key_of_two_is_told_and_takes_nothing_away() -> None:
    keys = (SecretKeyRef("acme", "acme-key", "key"), SecretKeyRef("acme", "next", "key"))
    admitted = admit(desired(tenant(api_keys=keys), secret()))

    assert set(admitted.tenants) == {"acme"}
    assert [str(p) for p in admitted.problems] == [
        "Tenant acme: .spec.apiKeys[1].secretRef: there is no Secret acme/next: create it with the key 'key'"
    ]


def test_a_tenant_may_name_a_model_that_does_not_exist_yet() -> None:
    admitted = admit(desired(ACME, secret()))

    assert set(admitted.tenants) == {"acme"}
    assert [p.message for p in admitted.problems] == ["there is no BaseModel models/smollm2"]


def test_of_two_models_with_one_served_name_the_first_wins_and_it_is_told() -> None:
    other = base_model(ref=Ref("other", "smollm2"))
    admitted = admit(desired(OPEN, other, tenant(models=(BASE, other.ref)), secret()))

    assert [(p.field, p.reason) for p in admitted.problems] == [(".spec.models[1]", "ServedNameConflict")]


@pytest.mark.parametrize(("labels", "allowed"), [
    ({}, False), ({"acme": {"tier": "gold"}}, True), ({"acme": {"tier": "lead"}}, False),
])  # fmt: skip
def test_a_selector_asks_for_the_namespaces_labels(labels: dict[str, dict[str, str]], allowed: bool) -> None:
    base = base_model(allowed_namespaces=AllowedNamespaces("Selector", {"tier": "gold"}))
    wanted = desired(base, adapter(), namespace_labels=labels)

    assert bool(admit(wanted).adapters) == allowed


def test_every_namespace_has_its_name_as_a_label() -> None:
    chosen = AllowedNamespaces("Selector", {"kubernetes.io/metadata.name": "acme"})
    wanted = desired(base_model(allowed_namespaces=chosen), adapter(), adapter(namespace="other"))

    assert set(admit(wanted).adapters) == {Ref("acme", "pirate")}


def test_an_adapter_is_not_refused_because_its_base_model_cannot_be_read() -> None:
    unreadable = {ObjectKey("BaseModel", "models", "smollm2"): SetAside((Problem("x", "", "typo"),), readable=False)}

    assert set(admit(desired(adapter(), set_aside=unreadable)).adapters) == {Ref("acme", "pirate")}
    assert set(admit(desired(adapter(), complete=False)).adapters) == {Ref("acme", "pirate")}


def test_a_refused_base_model_takes_its_adapters_with_it() -> None:
    loser = base_model(ref=Ref("models", "zz"), served_name="smollm2-135m", allowed_namespaces=ALL)

    assert aside(desired(OPEN, loser, adapter(base=loser.ref))) == {
        "BaseModel models/zz": ["ServedNameConflict"], "LoRAAdapter acme/pirate": ["BaseModelNotFound"],
    }  # fmt: skip


def test_admitting_twice_changes_nothing() -> None:
    once = admit(desired(base_model(), adapter(), ACME, tenant("bolt", ("acme",)), secret()))

    assert admit(once) == once


def test_no_problem_tells_a_key() -> None:
    wanted = desired(tenant(), secret(), tenant("bolt", ("bolt",)), secret("bolt"))

    assert not any("sk-acme" in str(problem) for problem in admit(wanted).problems)
    assert "sk-acme" not in repr(wanted)
