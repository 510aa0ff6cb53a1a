"""Whom a key recognises: one tenant, or nobody. No client is ever served as somebody else by luck."""

from __future__ import annotations

from typing import Any

import pytest

from lorafleet_operator.core.fleet import key_hash, tenants_document
from lorafleet_operator.core.objects import Desired, Ref, Secret, SecretKeyRef, Tenant
from lorafleet_operator.core.planner import plan
from lorafleet_operator.core.status import statuses
from lorafleet_operator.core.validation import admit
from lorafleet_sim.fleets import base_model, desired, observed, secret, tenant

NOW = "2026-01-01T00:00:00Z"
OLD, NEW = {"created": "2026-01-01T00:00:00Z"}, {"created": "2026-02-01T00:00:00Z"}
SHARED = secret("bolt", b"sk-acme\n")
OWN = Secret(Ref("bolt", "own"), {"key": b"sk-bolt"})


def bolt(*names: str, **more: Any) -> Tenant:
    """A tenant with these Secrets' keys."""
    keys = tuple(SecretKeyRef("bolt", name, "key") for name in names)
    return tenant("bolt", ("bolt",), api_keys=keys, **more)


def recognised(wanted: Desired) -> dict[str, list[str]]:
    """By tenant, the Secrets of the keys that gateways are told of."""
    found = tenants_document(admit(wanted), 1)["tenants"]
    return {entry["name"]: [key["id"] for key in entry["keys"]] for entry in found}


def accepted(wanted: Desired) -> dict[str, tuple[str, str]]:
    """By tenant, what its condition Accepted says."""
    admitted = admit(wanted)
    seen = observed(admitted)
    told = statuses(admitted, seen, plan(admitted, seen, 0.0), {}, NOW)
    conditions = {key.name: status["conditions"][0] for key, status in told.items() if key.kind == "Tenant"}
    return {name: (c["status"], c["reason"]) for name, c in conditions.items()}


@pytest.mark.parametrize(("first", "second"), [({}, {}), (OLD, NEW), (NEW, OLD)])
def test_two_tenants_with_one_key_are_both_refused_whoever_was_first(first: Any, second: Any) -> None:
    wanted = desired(tenant(**first), secret(), bolt("bolt-key", **second), SHARED)

    assert recognised(wanted) == {}
    assert accepted(wanted) == {"acme": ("False", "KeyConflict"), "bolt": ("False", "KeyConflict")}
    assert key_hash(b"sk-acme") not in str(tenants_document(admit(wanted), 1))


def test_two_tenants_that_name_one_secret_share_its_key_too() -> None:
    other = tenant("bolt", ("bolt",), api_keys=tenant().api_keys)

    assert recognised(desired(tenant(), secret(), other)) == {}


def test_a_tenant_with_another_key_goes_on_with_that_one_alone() -> None:
    wanted = desired(tenant(), secret(), bolt("bolt-key", "own"), SHARED, OWN)
    (problem,) = [p for p in admit(wanted).problems if p.where == "Tenant bolt"]

    assert recognised(wanted) == {"bolt": ["bolt/own"]}
    assert accepted(wanted) == {"acme": ("False", "KeyConflict"), "bolt": ("True", "Accepted")}
    assert str(problem) == (
        "Tenant bolt: .spec.apiKeys[0]: the key in Secret bolt/bolt-key is also Tenant acme's (.spec.apiKeys[0]): "
        "a key names one tenant, so it recognises neither until one of them has a new one"
    )


def test_a_tenant_that_is_refused_for_something_else_still_makes_a_key_ambiguous() -> None:
    thief = tenant("zed", ("acme",), api_keys=tenant().api_keys)  # acme's namespace, too
    wanted = desired(tenant(), secret(), thief)

    assert recognised(wanted) == {}
    assert accepted(wanted)["zed"][0] == "False"


def test_a_new_key_for_one_of_them_brings_both_back() -> None:
    wanted = desired(tenant(), secret(), bolt("bolt-key"), secret("bolt", b"sk-new"))

    assert recognised(wanted) == {"acme": ["acme/acme-key"], "bolt": ["bolt/bolt-key"]}


def test_one_tenant_may_name_its_key_twice() -> None:
    twice = bolt("bolt-key", "copy")
    wanted = desired(twice, secret("bolt", b"sk-bolt"), Secret(Ref("bolt", "copy"), {"key": b"sk-bolt"}))

    assert recognised(wanted) == {"bolt": ["bolt/bolt-key", "bolt/copy"]}


def test_a_missing_and_a_shared_key_leave_none_to_be_recognised_by() -> None:
    wanted = desired(tenant(), secret(), bolt("bolt-key", "nowhere"), SHARED)

    assert recognised(wanted) == {}
    assert [p.reason for p in admit(wanted).problems if p.where == "Tenant bolt"] == ["KeyConflict", "KeyMissing"]


def test_a_key_that_no_tenant_names_is_told_to_nobody() -> None:
    wanted = desired(base_model(), tenant(), secret(), OWN)

    assert recognised(wanted) == {"acme": ["acme/acme-key"]}
    assert key_hash(b"sk-bolt") not in str(tenants_document(admit(wanted), 1))


def test_a_tenant_that_is_deleted_leaves_the_document_and_its_key_is_free() -> None:
    both = desired(tenant(), secret(), bolt("own"), OWN)
    left = desired(tenant(), secret(), OWN)

    assert recognised(both) == {"acme": ["acme/acme-key"], "bolt": ["bolt/own"]}
    assert recognised(left) == {"acme": ["acme/acme-key"]}
    assert recognised(desired(tenant(), SHARED, secret())) == {"acme": ["acme/acme-key"]}
