from __future__ import annotations

import asyncio
import io
import json
import time
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.gateway.fake_runtime import Fault
from tests.gateway.gateway_kit import KEY, TOKEN, Kit, chat, open_unread, stalls


async def test_a_real_client_gets_whole_and_streamed_answers_under_its_own_model_name(kit: Kit) -> None:
    [replica] = await kit.up()

    async with kit.client() as client:
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
        whole = await client.chat.completions.create(model="pirate", messages=messages)
        stream = await client.chat.completions.create(model="pirate", messages=messages, stream=True)
        chunks = [chunk async for chunk in stream]
        plain = await client.completions.create(model="smol-135m", prompt="hi", stream=True)
        texts = [chunk.choices[0].text async for chunk in plain]

    assert whole.choices[0].message.content == replica.text()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == replica.text()
    assert "".join(texts) == replica.text()
    assert {whole.model, *(chunk.model for chunk in chunks)} == {"pirate"}
    assert [seen.body["model"] for seen in replica.seen] == ["acme.pirate", "acme.pirate", "smol-135m"]


async def test_a_replica_sees_the_gateways_headers_and_none_of_the_clients(kit: Kit) -> None:
    [replica] = await kit.up()
    spoofed = {
        "Lorafleet-Tenant": "globex", "lorafleet-weight": "1000", "Lorafleet-Request-Id": "mine",
        "X-Llm-D-Inference-Fairness-Id": "globex", "X-Tenant": "globex", "Cookie": "a=b", "Connection": "X-Hop",
        "X-Hop": "1", "User": "globex", "X-Priority": "9", "X-Request-Priority": "9", "Priority": "u=0",
        "X-Forwarded-For": "1.2.3.4", "Forwarded": "for=1.2.3.4", "TE": "trailers", "Proxy-Authorization": "x",
        "OpenAI-Organization": "globex", "Idempotency-Key": "k", "Traceparent": "00-abc-def-01",
    }  # fmt: skip

    async with kit.http.post("/v1/chat/completions", json=chat(), headers=spoofed) as response:
        identity = response.headers["x-request-id"]

    headers = {name.lower(): value for name, value in replica.seen[0].headers.items()}
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers["lorafleet-tenant"] == "acme"
    assert headers["lorafleet-weight"] == "2"
    assert headers["lorafleet-request-id"] == identity != "mine"
    assert headers["traceparent"] == "00-abc-def-01"
    assert headers.keys() == {
        "host", "authorization", "content-type", "content-length", "accept", "accept-encoding",
        "lorafleet-tenant", "lorafleet-weight", "lorafleet-request-id", "traceparent",
    }  # fmt: skip
    assert KEY not in str(headers)


async def test_other_fields_reach_the_replica_untouched(kit: Kit) -> None:
    [replica] = await kit.up()
    fields: dict[str, Any] = {
        "top_k": 3,
        "logit_bias": {"5": -1.5},
        "stop": ["é\n"],
        "seed": 2**63,
        "metadata": {"a": [1, {}]},
    }

    async with kit.http.post("/v1/chat/completions", json=chat(**fields)) as response:
        assert response.status == 200

    assert replica.seen[0].body == {**chat(**fields), "model": "acme.pirate"}


async def test_token_ids_stay_with_the_gateway_unless_the_client_asks_for_them(kit: Kit) -> None:
    [replica] = await kit.up()

    without = "".join(await kit.chunks_of(chat()))
    asked = [json.loads(chunk) for chunk in (await kit.chunks_of(chat(return_token_ids=True)))[:-1]]

    assert replica.seen[0].body["return_token_ids"] is True
    assert "token_ids" not in without
    assert [i for row in asked for i in row["choices"][0]["token_ids"]] == list(range(100, 108))
    assert asked[0]["prompt_token_ids"] == [1, 2, 3]


@pytest.mark.parametrize("reads", [False, True])
async def test_a_client_that_does_not_read_makes_the_replica_wait(kit: Kit, reads: bool) -> None:
    [replica] = await kit.up(tokens=10**9, padding="x" * 4000)
    client = await open_unread(kit.url, chat(stream=True))

    async def read() -> None:
        while await asyncio.get_running_loop().sock_recv(client, 65536):
            pass

    reader = asyncio.create_task(read() if reads else asyncio.sleep(0))
    stalled = await stalls(replica)
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    client.close()

    # The sockets hold a few megabytes; a gateway that read ahead would never stall, nor does one being read.
    assert stalled is not reads
    await kit.until(lambda: replica.cancelled == 1)


async def test_a_client_that_reads_late_still_gets_everything(kit: Kit) -> None:
    [replica] = await kit.up(tokens=3000, padding="x" * 4000)
    async with kit.http.post("/v1/chat/completions", json=chat(stream=True)) as response:
        assert await stalls(replica)
        chunks = (await response.text())[6:-2].split("\n\ndata: ")

    rows = [json.loads(chunk) for chunk in chunks[:-1]]
    assert "".join(row["choices"][0]["delta"].get("content", "") for row in rows) == replica.text()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_the_replicas_work_at_once(kit: Kit, stream: bool) -> None:
    [replica] = await kit.up(tokens=10**6, delay=0.01)
    asking = asyncio.create_task(kit.chunks_of(chat()) if stream else _post(kit))
    await kit.until(lambda: replica.running == 1)
    await asyncio.sleep(0.05)

    left = time.monotonic()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await kit.until(lambda: replica.cancelled == 1)

    assert time.monotonic() - left < 0.25
    await kit.until(lambda: 'code="499"' in kit.metrics.render().decode())
    assert len(replica.seen) == 1


async def _post(kit: Kit) -> None:
    async with kit.http.post("/v1/chat/completions", json=chat()) as response:
        await response.read()


async def test_the_request_goes_where_there_is_less_to_do(kit: Kit) -> None:
    first, second = await kit.up(2, delay=0.05)
    await asyncio.gather(*(kit.text_of() for _ in range(6)))

    assert (len(first.seen), len(second.seen)) == (3, 3)


async def test_what_other_gateways_sent_to_a_replica_counts_as_load(kit: Kit) -> None:
    first, second = await kit.up(2)
    first.others_waiting = 5
    await asyncio.sleep(0.2)
    for _ in range(6):
        await kit.text_of()

    assert (len(first.seen), len(second.seen)) == (0, 6)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault",
    [Fault("before"), Fault("status", status=500), Fault("status", status=503), Fault("status", status=404)],
)
async def test_a_failure_before_the_first_byte_goes_to_another_replica(kit: Kit, fault: Fault, stream: bool) -> None:
    first, second = await kit.up(2)
    first.faults, second.others_waiting = [fault] * 20, 5
    await asyncio.sleep(0.2)  # the report of that load leads the first request to the first replica
    for _ in range(4):
        async with kit.http.post("/v1/chat/completions", json=chat(stream=stream)) as response:
            assert response.status == 200
            assert "w7" in await response.text()

    assert len(second.seen) == 4
    assert len(first.seen) >= 1


async def test_a_replica_that_refuses_connections_is_passed_over(kit: Kit) -> None:
    first, second = await kit.up(2)
    await first.stop()

    assert [await kit.text_of() for _ in range(4)] == [second.text()] * 4


async def test_a_whole_answer_is_asked_for_again_when_its_replica_dies(kit: Kit) -> None:
    first, second = await kit.up(2, delay=0.02)
    first.faults = second.faults = [Fault("hang")]
    asking = asyncio.create_task(_whole_text(kit))
    await kit.until(lambda: first.running + second.running == 1)

    await (first if first.running else second).stop()

    assert await asking == first.text()


async def _whole_text(kit: Kit) -> str:
    async with kit.http.post("/v1/chat/completions", json=chat()) as response:
        text: str = (await response.json())["choices"][0]["message"]["content"]
        return text


async def test_a_replicas_400_reaches_the_client_with_its_parameter(kit: Kit) -> None:
    [replica] = await kit.up()
    replica.faults = [Fault("status", status=400, code="context_length_exceeded")]

    async with kit.http.post("/v1/chat/completions", json=chat()) as response:
        error = (await response.json())["error"]

    assert response.status == 400
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "model"
    assert error["type"] == "invalid_request_error"
    assert error["message"] == "no pirate"
    assert len(replica.seen) == 1


async def test_a_replicas_429_reaches_the_client_with_the_time_to_wait(kit: Kit) -> None:
    [replica] = await kit.up()
    replica.faults = [Fault("status", status=429, code="rate_limited")]

    async with kit.http.post("/v1/chat/completions", json=chat()) as response:
        error = (await response.json())["error"]

    assert (response.status, response.headers["Retry-After"], error["code"]) == (429, "7", "rate_limited")
    assert len(replica.seen) == 1


async def test_a_replica_that_gives_up_early_is_not_asked_again(kit: Kit) -> None:
    """Neither is another: they are chosen by load, and the client's time is over."""
    replicas = await kit.up(2)
    for replica in replicas:
        replica.faults = [Fault("status", status=503, code="slo_unattainable")]

    async with kit.http.post("/v1/chat/completions", json=chat()) as response:
        error = (await response.json())["error"]

    assert (response.status, response.headers["Retry-After"], error["code"]) == (503, "7", "slo_unattainable")
    assert sum(len(replica.seen) for replica in replicas) == 1


async def test_a_lone_replica_that_is_not_there_is_a_503_to_ask_again(kit: Kit) -> None:
    [replica] = await kit.up()
    await replica.stop()

    async with kit.http.post("/v1/chat/completions", json=chat()) as response:
        error = (await response.json())["error"]

    assert response.status == 503
    assert response.headers["Retry-After"].isdecimal()
    assert "cannot be reached" in error["message"]


async def test_a_refused_gateway_token_is_the_gateways_fault_not_the_clients(kit: Kit) -> None:
    [replica] = await kit.up()
    replica.faults = [Fault("status", status=401)] * 100

    async with kit.http.post("/v1/chat/completions", json=chat()) as response:
        error = (await response.json())["error"]

    assert response.status == 502
    assert "LORAFLEET_SERVING_TOKEN" in error["message"]


async def test_a_lone_replica_that_keeps_failing_is_a_502_and_not_an_endless_wait(kit: Kit) -> None:
    [replica] = await kit.up()
    replica.faults = [Fault("before")] * 100

    async with kit.http.post("/v1/chat/completions", json=chat()) as response:
        error = (await response.json())["error"]

    assert (response.status, error["code"]) == (502, "replica_failed")
    assert len(replica.seen) == kit.limits.losses


async def test_a_large_body_arrives_whole(kit: Kit) -> None:
    [replica] = await kit.up()
    text = "x" * (3 * 2**20)

    body = io.BytesIO(json.dumps({"model": "pirate", "prompt": text}).encode())

    async with kit.http.post("/v1/completions", data=body) as response:
        assert response.status == 200

    assert replica.seen[0].body["prompt"] == text
