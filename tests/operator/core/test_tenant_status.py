"""What a Tenant says: what it has received, written when that changes by its own traffic and never at rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from lorafleet_operator.core.identity import Ref
from lorafleet_operator.core.objects import ObjectKey, Quota
from lorafleet_operator.core.planner import plan
from lorafleet_operator.core.status import statuses
from lorafleet_operator.core.tenant_status import only_usage_differs, quota_enforced, usage_field
from lorafleet_operator.core.usage import ModelUsage, TenantUsage, Usage
from lorafleet_sim.fleets import base_model, desired, observed, secret, tenant
from tests.deploy import crd_checker

TINY = Ref("models", "tiny")
NOON, LATER = "2026-01-01T12:00:00Z", "2026-01-01T12:01:00Z"
BUSY = TenantUsage(120, 80, 280, 3, 1, 2, (ModelUsage(TINY, 280, 1, 2, 140, -4),))
KEY = ObjectKey("Tenant", "", "acme")


def known(as_of: str = NOON, **tenants: TenantUsage) -> Usage:
    return Usage(as_of, tenants)


def told(usage: Usage, previous: Mapping[ObjectKey, Any] | None = None, now: str = NOON) -> Any:
    wanted = desired(base_model(), tenant(), secret())
    seen = replace(observed(wanted), usage=usage)
    return statuses(wanted, seen, plan(wanted, seen, 0.0), previous or {}, now)


def test_a_tenant_says_what_it_has_received_and_of_which_base_model() -> None:
    assert told(known(acme=BUSY))[KEY]["usage"] == {
        "asOf": NOON, "promptTokens": 120, "outputTokens": 80, "service": 280, "rejected": 3, "running": 1,
        "waiting": 2,
        "models": [{"baseModel": "models/tiny", "service": 280, "running": 1, "waiting": 2, "counter": 140, "lag": -4}],
    }  # fmt: skip


def test_the_crd_has_room_for_it() -> None:
    schema = crd_checker.schema("Tenant")["properties"]["status"]
    most = replace(BUSY, models=tuple(ModelUsage(Ref("m" * 63, "n" * 52), 2**62, 1, 1, 2**62, 1) for _ in range(16)))

    for usage in (BUSY, most, replace(BUSY, models=(ModelUsage(TINY, 1),))):
        jsonschema.validate(told(known(acme=usage))[KEY], schema)
    jsonschema.validate({"usage": usage_field(known(acme=BUSY), "acme", None)["usage"]}, schema)


@pytest.mark.parametrize("usage", [Usage(), known(), known(bolt=BUSY), known(acme=TenantUsage())])
def test_a_tenant_without_traffic_says_nothing_of_it(usage: Usage) -> None:
    assert "usage" not in told(usage)[KEY]


@pytest.mark.parametrize("usage", [
    Usage(), known(LATER, acme=BUSY), known(LATER, acme=BUSY, bolt=replace(BUSY, service=9)),
    known(LATER, acme=replace(BUSY, models=(ModelUsage(TINY, 280, 1, 2, 150, -90),))),
])  # fmt: skip
def test_at_rest_nothing_changes_whatever_others_do(usage: Usage) -> None:
    before = told(known(acme=BUSY))

    assert told(usage, before, LATER)[KEY] is before[KEY]


def test_traffic_brings_all_figures_up_to_date() -> None:
    now = replace(BUSY, service=281, models=(ModelUsage(TINY, 281, 1, 2, 150, -90),))
    usage = told(known(LATER, acme=now), told(known(acme=BUSY)), LATER)[KEY]["usage"]

    assert (usage["asOf"], usage["service"], usage["models"][0]["lag"]) == (LATER, 281, -90)


def test_a_tenant_that_no_replica_knows_any_more_keeps_its_totals_and_runs_nothing() -> None:
    before = told(known(acme=BUSY))
    usage = told(known(LATER), before, LATER)[KEY]["usage"]

    assert (usage["service"], usage["running"], usage["waiting"], usage["models"][0]["waiting"]) == (280, 0, 0, 0)
    assert told(known("later still"), {KEY: {"usage": usage}})[KEY]["usage"] == usage


def test_usage_moves_no_transition_time_and_can_be_told_from_other_news() -> None:
    before = told(known(acme=BUSY))[KEY]
    busier = told(known(LATER, acme=replace(BUSY, service=300)), {KEY: before}, LATER)[KEY]

    assert busier["conditions"] == before["conditions"]
    assert only_usage_differs(busier, before)
    assert only_usage_differs(before, {name: value for name, value in before.items() if name != "usage"})
    assert not only_usage_differs({**busier, "keys": "0/1"}, before)
    assert not only_usage_differs({"keys": "1/1"}, {"keys": "0/1"})


def test_the_limits_that_gateways_keep_are_named() -> None:
    limited = quota_enforced(tenant(quota=Quota(tokens_per_minute=200, max_concurrent_requests=4, max_adapters=1)))
    free = quota_enforced(tenant(quota=Quota(max_adapters=1)))

    assert (limited.holds, limited.reason) == (True, "Enforced")
    assert limited.message == "gateways answer 429 beyond tokensPerMinute 200, maxConcurrentRequests 4"
    assert (free.holds, free.reason) == (True, "NoLimits")
