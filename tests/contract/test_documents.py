"""What the operator's core writes is what docs/contracts.md shows, and what the gateway's structs read: no more, no
less."""

from __future__ import annotations

import json
from typing import Any, get_args

import msgspec
import pytest

from lorafleet_gateway.core.fleet_model import (
    FleetDocument,
    TenantsDocument,
    decode_fleet,
    decode_tenants,
    fleet_of,
)
from lorafleet_gateway.core.naming import resolve
from lorafleet_gateway.tenants import TenantTable
from lorafleet_operator.core.fleet import REPLICA_STATES, fleet_documents, tenants_document
from lorafleet_operator.core.objects import (
    Adapter,
    Artifact,
    BaseModel,
    Desired,
    Observed,
    Quota,
    Ref,
    Replica,
    ReplicaState,
    Resident,
    Secret,
    SecretKeyRef,
    Source,
    Tenant,
    Unresolved,
)
from tests.contract.shapes import shape, words

BASE = BaseModel(Ref("models", "smollm2"), "smollm2-135m", Source("file:model"))
PIRATE = Adapter(Ref("acme", "pirate"), BASE.ref, "pirate", Source("file:pirate"))
ACME = Tenant(
    "acme", ("acme",), (SecretKeyRef("acme", "acme-key", "key"),), 2, Quota(600, 200000, 64), (BASE.ref,),
)  # fmt: skip
REVISION = "sha256:" + "a" * 64


def desired() -> Desired:
    return Desired(
        base_models={BASE.ref: BASE},
        adapters={PIRATE.ref: PIRATE},
        tenants={ACME.name: ACME},
        secrets={Ref("acme", "acme-key"): Secret(Ref("acme", "acme-key"), {"key": b"sk-acme"})},
    )


def observed(state: ReplicaState = "Ready", resident: Resident | None = None, found: Any = None) -> Observed:
    """One replica that holds the adapter."""
    held = resident or Resident(PIRATE.ref, REVISION, "Ready", rank=8)
    url = "http://127.0.0.1:41001"
    replica = Replica("smollm2-0", BASE.ref, 0, state, "hash", incarnation="i1", url=url, residents=(held,))
    return Observed(replicas={replica.name: replica}, artifacts={PIRATE.ref: found or Artifact(REVISION)})


def published(world: Observed) -> dict[str, Any]:
    return fleet_documents(desired(), world, lambda _: 17)[BASE.ref]


def test_the_fleet_document_has_the_fields_of_the_contract(examples: dict[str, Any]) -> None:
    assert shape(published(observed())) == shape(examples["fleet"])


def test_the_tenants_document_has_the_fields_of_the_contract(examples: dict[str, Any]) -> None:
    document = tenants_document(desired(), 4)

    assert shape(document) == shape(examples["tenants"])
    assert document["tenants"][0]["keys"][0]["id"] == "acme/acme-key"
    assert "sk-acme" not in json.dumps(document)


def test_the_gateway_reads_every_field_of_the_fleet_document() -> None:
    document = published(observed())
    read = msgspec.json.decode(json.dumps(document), type=FleetDocument)

    assert json.loads(msgspec.json.encode(read)) == document


def test_the_gateway_reads_every_field_of_the_tenants_document() -> None:
    document = tenants_document(desired(), 4)
    read = msgspec.json.decode(json.dumps(document), type=TenantsDocument)
    quota = document["tenants"][0]["quota"]

    assert quota == {"requestsPerMinute": 600, "tokensPerMinute": 200000, "maxConcurrentRequests": 64}
    assert json.loads(msgspec.json.encode(read)) == document


def test_the_gateway_reads_the_examples_of_the_contract(examples: dict[str, Any]) -> None:
    fleet = decode_fleet(json.dumps(examples["fleet"]).encode())
    tenants = decode_tenants(json.dumps(examples["tenants"]).encode())

    assert fleet.base.key == ("models", "smollm2")
    assert tenants.tenants[0].weight == 2


@pytest.mark.parametrize("state", get_args(ReplicaState))
def test_every_state_of_a_replica_is_one_of_the_contracts(examples: dict[str, Any], state: ReplicaState) -> None:
    document = published(observed(state))

    assert document["replicas"][0]["state"] in words(examples["fleet"]["replicas"][0]["state"])
    assert document["replicas"][0]["state"] == REPLICA_STATES.get(state, state)


@pytest.mark.parametrize(("world", "state", "reason"), [
    (observed(), "Ready", ""),
    (observed("Starting"), "Loading", ""),
    (observed(resident=Resident(PIRATE.ref, REVISION, "Loading")), "Loading", ""),
    (observed(resident=Resident(PIRATE.ref, REVISION, "Failed", "InvalidAdapter", "it has NaN")),
     "Failed", "InvalidAdapter"),
    (observed(resident=Resident(PIRATE.ref, "sha256:old", "Ready")), "Ready", ""),
    (observed(resident=Resident(Ref("acme", "else"), REVISION, "Ready"), found=Unresolved("NotFound", "no folder")),
     "Failed", "NotFound"),
])  # fmt: skip
def test_every_state_of_an_adapter_is_one_of_the_contracts(
    examples: dict[str, Any], world: Observed, state: str, reason: str
) -> None:
    [adapter] = published(world)["adapters"]

    assert state in words(examples["fleet"]["adapters"][0]["state"])
    assert (adapter["state"], adapter["reason"]) == (state, reason)
    assert bool(adapter["message"]) == bool(reason)


def test_a_key_of_a_secret_is_the_key_that_the_gateway_knows() -> None:
    tenants = decode_tenants(json.dumps(tenants_document(desired(), 4)).encode())
    fleet = fleet_of([decode_fleet(json.dumps(published(observed())).encode())])
    caller = TenantTable(tenants).authenticate("Bearer sk-acme")

    assert caller is not None
    assert caller.name == "acme"
    for model, wire_name in (("pirate", "acme.pirate"), ("smollm2-135m", "smollm2-135m")):
        target = resolve(model, caller, fleet)
        assert target is not None
        assert target.wire_name == wire_name
    assert TenantTable(tenants).authenticate("Bearer sk-acme-") is None
