from __future__ import annotations

import json

import pytest

from lorafleet_gateway.core.fleet_model import Quota, decode_fleet, decode_tenants
from lorafleet_gateway.errors import DocumentError
from tests.gateway.gateway_kit import adapter, fleet_document, placement, tenant


def document() -> dict[str, object]:
    replica = {"name": "r0", "incarnation": "i", "url": "http://r0", "state": "Ready"}
    return fleet_document([replica], [adapter("acme.pirate", [placement("r0")])])


def test_the_contracts_document_is_read() -> None:
    part = decode_fleet(json.dumps(document()).encode())

    assert part.base.key == ("models", "smol")
    assert part.replicas["r0"].key == ("r0", "i", "http://r0")
    assert part.by_served_name[("acme", "pirate")] is part.by_id["acme.pirate"]


def test_a_newer_operators_fields_are_ignored() -> None:
    newer = {**document(), "shiny": {"new": [1]}}
    tenants = {"version": 1, "generation": 1, "tenants": [{**tenant("acme", "k"), "budget": 3}], "more": 1}

    assert decode_fleet(json.dumps(newer).encode()).replicas
    assert decode_tenants(json.dumps(tenants).encode()).tenants[0].name == "acme"


def test_of_two_adapters_with_one_served_name_the_lesser_id_has_it() -> None:
    twins = [adapter(f"acme.{name}", [], servedName="same") for name in ("b", "a")]
    part = decode_fleet(json.dumps(fleet_document([], twins)).encode())

    assert part.by_served_name[("acme", "same")].id == "acme.a"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "truncated"),
        (b"[]", "object"),
        (b"{}", "version is null"),
        (json.dumps({**document(), "version": 2}).encode(), "version is 2, and this gateway reads version 1"),
        (json.dumps({**document(), "replicas": [{"name": "r0", "state": "Ready"}]}).encode(), "`url`"),
        (json.dumps({**document(), "generation": "x"}).encode(), "$.generation"),
        (b'{"version": 1, "x": ' + b"[" * 100_000, ""),
    ],
)
def test_a_bad_document_says_where(data: bytes, problem: str) -> None:
    with pytest.raises(DocumentError) as raised:
        decode_fleet(data)

    assert problem in str(raised.value)


@pytest.mark.parametrize("weight", ["0", "-1", "-0.0", "1e999", "-Infinity", "NaN", "null", '"2"'])
def test_a_weight_that_nobody_can_divide_by_is_refused(weight: str) -> None:
    data = json.dumps({"version": 1, "generation": 1, "tenants": [tenant("acme", "k")]})
    with pytest.raises(DocumentError) as raised:
        decode_tenants(data.replace('"weight": 1', f'"weight": {weight}').encode())

    # What is no JSON at all has no field yet, only a place.
    assert ("byte" if weight in ("-Infinity", "NaN") else "$.tenants[0].weight") in str(raised.value)


@pytest.mark.parametrize("limit", ["requestsPerMinute", "tokensPerMinute", "maxConcurrentRequests"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "many"])
def test_a_quota_that_is_no_whole_number_above_0_is_refused(limit: str, value: object) -> None:
    row = {**tenant("acme", "k"), "quota": {limit: value}}
    with pytest.raises(DocumentError) as raised:
        decode_tenants(json.dumps({"version": 1, "generation": 1, "tenants": [row]}).encode())

    assert f"$.tenants[0].quota.{limit}" in str(raised.value)


def test_a_limit_that_is_not_named_is_none() -> None:
    row = {**tenant("acme", "k"), "quota": {"tokensPerMinute": 5, "maxAdapters": 3}}
    [read] = decode_tenants(json.dumps({"version": 1, "generation": 1, "tenants": [row]}).encode()).tenants

    assert read.quota == Quota(tokens_per_minute=5)
