"""Counters, accounts and metrics of a real runtime, as gateways, the operator and `top tenants` read them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from lorafleet_gateway.core.counters import Counters, Table
from lorafleet_gateway.core.fairness_messages import Answer, decode_answer, encode_request
from lorafleet_gateway.core.quota import Use
from lorafleet_operator.runtime_client import RuntimeClient
from tests.contract.replica_kit import ADMIN_TOKEN, SERVING_TOKEN, Replica, running
from tests.contract.shapes import shape

pytestmark = pytest.mark.slow

TOKEN = {"Authorization": f"Bearer {SERVING_TOKEN}"}


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """A replica that has given acme 2 prompt tokens and 3 output tokens at weight 2, and has heard of a gateway."""
    with running(tmp_path_factory.mktemp("replica")) as replica:
        body = {"model": "tiny", "prompt": [65, 66], "max_tokens": 3, "temperature": 0, "ignore_eos": True}
        headers = {**TOKEN, "Lorafleet-Tenant": "acme", "Lorafleet-Weight": "2"}
        answer = httpx.post(f"{replica.url}/v1/completions", json=body, headers=headers, timeout=60, trust_env=False)
        assert answer.status_code == 200
        told = encode_request(0, "", Table(), "other", 1, {"acme": Use(12, 3400, 12, 10)})
        assert exchanged(replica, told).status_code == 200
        deadline = time.monotonic() + 15
        while service(replica) != {"acme": 4_000_000}:  # its last token's charge comes behind the answer
            assert time.monotonic() < deadline, service(replica)
            time.sleep(0.05)
        yield replica


def service(replica: Replica) -> dict[str, int]:
    """What it says that it has given itself."""
    answer = decoded(replica)
    return dict(answer.table.service.get(answer.incarnation, {}))


def exchanged(replica: Replica, body: bytes) -> httpx.Response:
    return httpx.post(f"{replica.url}/fairness", content=body, headers=TOKEN, timeout=10, trust_env=False)


def decoded(replica: Replica, since: int = 0, incarnation: str = "") -> Answer:
    return decode_answer(exchanged(replica, encode_request(since, incarnation, Table(), "g", 1, {})).content)


def test_an_answer_is_what_the_contract_shows(replica: Replica, examples: dict[str, Any]) -> None:
    body = json.loads(exchanged(replica, encode_request(0, "", Table(), "g", 1, {})).content)
    incarnation = body["incarnation"]

    assert body["table"]["service"] == {incarnation: {"acme": 4_000_000}}
    body["table"]["service"] = {"INCARNATION": body["table"]["service"][incarnation]}
    body["table"]["offsets"] = {"acme": 0}
    body["usage"] = {"GATEWAY": body["usage"]["other"]}
    example = examples["exchanged"]
    assert (body["table"].pop("retired"), example["table"]["retired"]) == ([], [])
    assert shape(body) == shape({**example, "table": {n: v for n, v in example["table"].items() if n != "retired"}})


def test_a_gateway_understands_it_and_hears_only_news_after_that(replica: Replica) -> None:
    first = decoded(replica)
    again = decoded(replica, first.at, first.incarnation)

    assert first.usage["other"].tenants == {"acme": Use(12, 3400, 12, 10)}
    assert (again.table.service, again.usage["other"].tenants) == ({}, {})
    assert first.fairness.bound > 0


def test_what_a_gateway_brings_counts_and_its_nonsense_does_not(replica: Replica) -> None:
    mine, counters = decoded(replica), Counters()
    counters.take(Table(service={"another": {"acme": 10_000_000}}))
    body = encode_request(mine.at, mine.incarnation, counters.since(0), "g", 2, {})
    claim = encode_request(0, "", Table(service={mine.incarnation: {"acme": 2**40}}), "g", 3, {})

    assert exchanged(replica, body).status_code == 200
    refused = exchanged(replica, claim)

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_counters")
    metrics = httpx.get(f"{replica.url}/metrics", trust_env=False).text
    assert 'lorafleet_fairness_counter{model_name="tiny",tenant="acme"} 14.0' in metrics


async def test_the_operator_reads_what_tenants_have_received(replica: Replica, examples: dict[str, Any]) -> None:
    async with RuntimeClient(replica.admin_url, ADMIN_TOKEN, timeout=30) as client:
        report = await client.tenants()
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    body = httpx.get(f"{replica.admin_url}/admin/tenants", headers=headers, trust_env=False).json()

    assert shape(body) == shape(examples["shares"])
    share = report.shares["acme"]
    assert (share.service, share.prompt_tokens, share.output_tokens) == (8_000_000, 2, 3)
