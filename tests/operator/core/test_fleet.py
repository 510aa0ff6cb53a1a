"""What gateways are told: the documents of docs/contracts.md, word for word."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from lorafleet_operator.core.fleet import differs, fleet_documents, key_hash, tenants_document, urgent
from lorafleet_operator.core.objects import Quota, Ref, Replica, SecretKeyRef, Unresolved
from lorafleet_sim.fleets import (
    BASE,
    adapter,
    base_model,
    desired,
    found,
    observed,
    replica,
    resident,
    secret,
    tenant,
)

ONE = base_model(replicas=2)
PIRATE = adapter()
REVISION = found(PIRATE).revision
OLD = "sha256:" + "0" * 64


def entry(*replicas: Replica, **more: Any) -> dict[str, Any]:
    """The one adapter's entry."""
    wanted = desired(ONE, PIRATE)
    (only,) = fleet_documents(wanted, observed(wanted, *replicas, **more), lambda _: 1)[ONE.ref]["adapters"]
    found_entry: dict[str, Any] = only
    return found_entry


def test_a_fleet_document_has_the_form_of_the_contract() -> None:
    wanted = desired(ONE, PIRATE, adapter(base=Ref("models", "other"), name="stranger"))
    seen = observed(wanted, replica(ONE, 0, resident(PIRATE)), replica(ONE, 1, state="Starting", incarnation=""))

    assert fleet_documents(wanted, seen, lambda _: 17)[ONE.ref] == {
        "version": 1,
        "generation": 17,
        "baseModel": {"namespace": "models", "name": "smollm2", "servedName": "smollm2-135m", "maxModelLen": 2048},
        "replicas": [
            {"name": "smollm2-0", "incarnation": "process-0", "url": "http://127.0.0.1:41001", "state": "Ready"},
            {"name": "smollm2-1", "incarnation": "", "url": "http://127.0.0.1:41002", "state": "Starting"},
        ],
        "adapters": [{
            "id": "acme.pirate", "namespace": "acme", "name": "pirate", "servedName": "pirate",
            "revision": REVISION, "state": "Ready", "reason": "", "message": "",
            "placements": [{"replica": "smollm2-0", "revision": REVISION, "state": "Ready"}],
        }],
    }  # fmt: skip


def test_replicas_of_other_base_models_are_not_in_it() -> None:
    other = base_model(ref=Ref("models", "other"))
    wanted = desired(ONE, other)

    assert fleet_documents(wanted, observed(wanted, replica(other, 0)), lambda _: 1)[ONE.ref]["replicas"] == []


def test_a_replica_that_is_gone_counts_as_failed() -> None:
    wanted = desired(ONE)

    (only,) = fleet_documents(wanted, observed(wanted, replica(ONE, 0, state="Gone")), lambda _: 1)[ONE.ref]["replicas"]
    assert only["state"] == "Failed"


def test_an_adapter_without_copies_is_loading() -> None:
    assert (entry()["state"], entry()["placements"]) == ("Loading", [])


def test_an_old_revision_is_what_a_replica_serves_until_the_new_one_is_ready() -> None:
    both = replica(ONE, 0, resident(PIRATE, revision=OLD), resident(PIRATE, "Loading"))

    assert entry(both)["placements"] == [{"replica": "smollm2-0", "revision": OLD, "state": "Ready"}]
    assert (entry(both)["state"], entry(both)["revision"]) == ("Ready", REVISION)


def test_a_copy_on_a_replica_that_failed_does_not_count() -> None:
    assert entry(replica(ONE, 0, resident(PIRATE), state="Failed"))["state"] == "Loading"


def test_a_refused_adapter_is_failed_and_says_why() -> None:
    only = entry(replica(ONE, 0, resident(PIRATE, "Failed", "RankTooHigh", message="rank 64 > 16")))

    assert (only["state"], only["reason"], only["message"]) == ("Failed", "RankTooHigh", "rank 64 > 16")


def test_a_failure_in_one_place_is_no_failure_while_another_loads() -> None:
    failed, loading = resident(PIRATE, "Failed", "NoRoom"), resident(PIRATE, "Loading")

    assert entry(replica(ONE, 0, failed), replica(ONE, 1, loading))["state"] == "Loading"


def test_an_adapter_whose_source_is_away_fails_unless_a_copy_serves() -> None:
    away = {PIRATE.ref: Unresolved("NotFound", "there is no such folder")}

    assert (entry(artifacts=away)["state"], entry(artifacts=away)["reason"]) == ("Failed", "NotFound")
    assert entry(replica(ONE, 0, resident(PIRATE)), artifacts=away)["state"] == "Ready"


def test_a_tenants_document_has_the_form_of_the_contract() -> None:
    quota = Quota(600, 200000, 64, max_adapters=3)
    wanted = desired(tenant(weight=2, models=(BASE,), quota=quota), secret(value=b"sk-acme-demo\n"))

    assert tenants_document(wanted, 4) == {
        "version": 1,
        "generation": 4,
        "tenants": [{
            "name": "acme", "weight": 2, "namespaces": ["acme"],
            "models": [{"namespace": "models", "name": "smollm2"}],
            "keys": [{"id": "acme/acme-key", "sha256": hashlib.sha256(b"sk-acme-demo").hexdigest()}],
            "quota": {"requestsPerMinute": 600, "tokensPerMinute": 200000, "maxConcurrentRequests": 64},
        }],
    }  # fmt: skip


def test_keys_that_cannot_be_read_are_absent_and_limits_that_are_not_set_too() -> None:
    keys = (SecretKeyRef("acme", "acme-key", "key"), SecretKeyRef("acme", "missing", "key"))
    (only,) = tenants_document(desired(tenant(api_keys=keys), secret()), 1)["tenants"]

    assert [key["id"] for key in only["keys"]] == ["acme/acme-key"]
    assert only["quota"] == {}


def test_no_key_is_in_any_document() -> None:
    wanted = desired(ONE, PIRATE, tenant(), secret(value=b"sk-very-secret"))
    written = json.dumps([tenants_document(wanted, 1), fleet_documents(wanted, observed(wanted), lambda _: 1)[ONE.ref]])

    assert "sk-very-secret" not in written
    assert key_hash(b"sk-very-secret") in written


def test_the_generation_alone_is_no_difference() -> None:
    wanted = desired(tenant(), secret())

    assert not differs(tenants_document(wanted, 2), tenants_document(wanted, 1))
    assert differs(tenants_document(desired(), 1), tenants_document(wanted, 1))
    assert differs(tenants_document(wanted, 1), None)


def test_only_what_decides_where_requests_go_is_urgent() -> None:
    wanted = desired(ONE, PIRATE)

    def document(*replicas: Replica) -> dict[str, Any]:
        return fleet_documents(wanted, observed(wanted, *replicas), lambda _: 1)[ONE.ref]

    empty = document(replica(ONE, 0))
    assert not urgent(document(replica(ONE, 0, resident(PIRATE, "Loading"))), empty)
    assert urgent(document(replica(ONE, 0, resident(PIRATE))), empty)
    assert urgent(document(replica(ONE, 0, state="Failed")), empty)
    assert urgent(empty, None)
