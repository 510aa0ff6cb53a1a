"""The two routes that show and share tenants' counters, and the identity that they stand on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from lorafleet_runtime.core.fairness.counters import Table
from lorafleet_runtime.frontend.scripted_engine import ScriptedEngine
from lorafleet_runtime.frontend.server import create_app
from lorafleet_runtime.frontend.service import Service
from lorafleet_runtime.protocol import Sharing, TenantRow

TOKEN = {"Authorization": "Bearer secret"}


@pytest.fixture
async def guarded(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """The serving port of a replica behind gateways."""
    service.settings = replace(service.settings, serving_token="secret")
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://runtime") as client:
        yield client


def served(engine: ScriptedEngine) -> None:
    table = Table(service={"scripted": {"acme": 3_000_000, "globex": 1_000_000}})
    rows = [
        TenantRow("acme", 2.0, 6_000_000, prompt_tokens=4, output_tokens=1, waiting=2),
        TenantRow("globex", 1.0, 1_000_000, prompt_tokens=1),
    ]
    engine.board.took(Sharing("VTC", spread=2_000_000, bound=9_000_000, jain=0.8, lifts=1, table=table, tenants=rows))


async def test_an_exchange_answers_with_load_counters_and_the_bound(
    guarded: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    served(engine)
    answer = await guarded.post("/fairness", json={"version": 1}, headers=TOKEN)

    assert answer.status_code == 200
    body = answer.json()
    assert body["incarnation"] == "scripted"
    assert body["table"]["service"] == {"scripted": {"acme": 3_000_000, "globex": 1_000_000}}
    assert body["load"] == {"running": 0, "waiting": 0}
    assert body["fairness"] == {"policy": "VTC", "spread": 2_000_000, "bound": 9_000_000, "rate": 0}


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"version": 1, "table": {"offsets": {"acme": "much"}}}', b'{"version": 1, "since": -1.5}',
     b'{"version": 1, "table": {"offsets": {"acme": 99999999999999999999}}}', b"\xff"],
)  # fmt: skip
async def test_what_is_no_exchange_is_refused_by_name(guarded: httpx.AsyncClient, body: bytes) -> None:
    answer = await guarded.post("/fairness", content=body, headers=TOKEN)

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_counters")


async def test_only_a_gateway_may_exchange_counters(guarded: httpx.AsyncClient) -> None:
    assert (await guarded.post("/fairness", json={"version": 1})).status_code == 401


async def test_a_standalone_runtime_has_nobody_to_exchange_with(http: httpx.AsyncClient) -> None:
    assert (await http.post("/fairness", json={"version": 1})).status_code == 404


async def test_the_operator_sees_how_tenants_share(admin: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    served(engine)
    body = (await admin.get("/admin/tenants")).json()

    assert (body["policy"], body["spread"], body["bound"], body["jain"], body["lifts"]) == (
        "VTC", 2_000_000, 9_000_000, 0.8, 1,
    )  # fmt: skip
    assert body["tenants"][0] == {
        "name": "acme", "weight": 2.0, "service": 6_000_000, "promptTokens": 4, "outputTokens": 1,
        "counter": 3_000_000, "running": 0, "waiting": 2, "rejected": 0, "aborted": 0,
    }  # fmt: skip


async def test_metrics_show_service_in_units_by_tenant_and_kind(
    http: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    served(engine)
    text = (await http.get("/metrics")).text

    assert 'lorafleet_fairness_service_total{model_name="tiny",tenant="acme"} 6.0' in text
    assert 'lorafleet_fairness_counter{model_name="tiny",tenant="acme"} 3.0' in text
    assert 'lorafleet_fairness_tokens_total{kind="prompt",model_name="tiny",tenant="acme"} 4.0' in text
    assert 'lorafleet_fairness_waiting{model_name="tiny",tenant="acme"} 2.0' in text
    assert 'lorafleet_fairness_bound{model_name="tiny"} 9.0' in text
    assert 'lorafleet_fairness_lifts_total{model_name="tiny"} 1.0' in text


async def test_tenants_past_the_cap_are_counted_as_other(http: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    rows = [TenantRow(f"t{index:04}", 1.0, (index + 1) * 1_000_000, waiting=1) for index in range(1200)]
    engine.board.took(Sharing("VTC", tenants=rows))

    lines = (await http.get("/metrics")).text.splitlines()

    services = [line for line in lines if line.startswith("lorafleet_fairness_service_total{")]
    assert len(services) == 1001
    assert f'lorafleet_fairness_service_total{{model_name="tiny",tenant="other"}} {sum(range(1, 201)):.1f}' in services
    assert 'lorafleet_fairness_waiting{model_name="tiny",tenant="other"} 200.0' in lines


@pytest.mark.parametrize("weight", ["0", "-1", "1e-9", "1e9", "nan", "inf", "much"])
async def test_a_weight_that_means_nothing_is_refused(guarded: httpx.AsyncClient, weight: str) -> None:
    headers = {**TOKEN, "Lorafleet-Tenant": "acme", "Lorafleet-Weight": weight}
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
    answer = await guarded.post("/v1/completions", json=body, headers=headers)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Lorafleet-Weight")


async def test_a_tenants_name_that_no_gateway_would_carry_is_refused(guarded: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
    answer = await guarded.post("/v1/completions", json=body, headers={**TOKEN, "Lorafleet-Tenant": "x" * 64})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Lorafleet-Tenant")


async def test_the_tenant_is_the_gateways_word_and_the_user_the_clients(
    guarded: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 2, "user": "ann"}
    headers = {"Lorafleet-Tenant": "acme", "Lorafleet-Weight": "2"}

    await guarded.post("/v1/completions", json=body, headers={**TOKEN, **headers})
    asked = engine.requests[-1]

    assert (asked.tenant, asked.weight, asked.user) == ("acme", 2.0, "ann")
