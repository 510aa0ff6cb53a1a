"""Quotas at a real gateway: what is refused, and what is left of a quota after each way a request can end."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from lorafleet_gateway.core.quota import Account
from tests.gateway.fake_runtime import FakeRuntime, Fault
from tests.gateway.gateway_kit import KEY, OTHER_KEY, Kit, chat, error_of, open_unread, tenant

POST = "/v1/chat/completions"
ROOMY = {"requestsPerMinute": 10**6, "tokensPerMinute": 10**9, "maxConcurrentRequests": 100}
PROMPT_IDS = 3  # what a fake replica says of every prompt


def account(kit: Kit, name: str = "acme") -> Account:
    found: Account = kit.app.state.services.quotas._accounts[name]
    return found


def used(kit: Kit) -> tuple[int, int, int]:
    """Acme's requests and tokens that count, and what runs."""
    found = account(kit)
    return found._requests, found._tokens, found.running


async def limited(kit: Kit, quota: dict[str, int], replicas: int = 1, **fields: Any) -> list[FakeRuntime]:
    kit.quota = quota
    return await kit.up(replicas, **fields)


async def test_over_the_request_limit_is_429_that_says_everything_and_reaches_no_replica(kit: Kit) -> None:
    [replica] = await limited(kit, {"requestsPerMinute": 2})
    for _ in range(2):
        await kit.text_of()

    async with kit.http.post(POST, json=chat()) as response:
        error = (await response.json())["error"]

    assert (response.status, response.headers["Retry-After"]) == (429, "30")
    assert (error["code"], error["type"], error["param"]) == ("quota_exceeded", "rate_limit_error", "requestsPerMinute")
    for part in ("`acme`", "`requestsPerMinute` is 2", "2 are used", "in 30 s"):
        assert part in error["message"]
    assert len(replica.seen) == 2
    labels = {"tenant": "acme", "limit": "requestsPerMinute"}
    assert kit.metrics.registry.get_sample_value("lorafleet_gateway_quota_rejected_total", labels) == 1
    assert (await error_of(kit, key=OTHER_KEY, json=chat()))[0] == 404  # no other tenant is touched


async def test_who_comes_back_after_retry_after_is_served(kit: Kit) -> None:
    [replica] = await limited(kit, {"requestsPerMinute": 60, "tokensPerMinute": 3600})
    body = chat(max_tokens=3600)
    await kit.text_of(body)  # takes 3,600 and gives back all but 11
    async with kit.http.post(POST, json=body) as refused:
        assert refused.status == 429
        seconds = int(refused.headers["Retry-After"])

    assert seconds == 1
    await asyncio.sleep(seconds)
    assert await kit.text_of(body) == replica.text()


async def test_more_than_may_run_at_once_are_refused_and_the_next_after_an_end_is_not(kit: Kit) -> None:
    await limited(kit, {"maxConcurrentRequests": 2}, delay=0.05)
    asking = [asyncio.create_task(kit.text_of()) for _ in range(2)]
    await kit.until(lambda: used(kit)[2] == 2)

    async with kit.http.post(POST, json=chat()) as response:
        error = (await response.json())["error"]
    assert (response.status, response.headers["Retry-After"], error["param"]) == (429, "1", "maxConcurrentRequests")

    await asyncio.gather(*asking)
    await kit.text_of()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_asks_one_after_the_other_never_meets_its_own_last_request(kit: Kit, stream: bool) -> None:
    await limited(kit, {"maxConcurrentRequests": 1}, tokens=1, linger=0.1)

    for _ in range(10):
        async with kit.http.post(POST, json=chat(stream=stream)) as response:
            assert response.status == 200
            await response.read()


async def test_a_request_over_its_quota_is_refused_before_its_body_is_there(kit: Kit) -> None:
    await limited(kit, {"requestsPerMinute": 1})
    await kit.text_of()
    host, port = kit.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {POST} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 8000000"
    writer.write(f"{head}\r\n\r\n".encode())

    assert b" 429 " in await asyncio.wait_for(reader.readline(), 2)
    writer.close()


ENDS: list[tuple[str, dict[str, Any], int]] = [
    ("stream", {"stream": True, "max_tokens": 1000}, 11),
    ("stream of unknown length", {"stream": True}, 11),
    ("whole", {"max_tokens": 1000}, 11),
    ("two choices", {"stream": True, "n": 2, "max_tokens": 1000}, 11),  # as the fake's usage says
    ("two choices, whole", {"n": 2, "max_tokens": 1000}, 11),
]


@pytest.mark.parametrize(("fields", "tokens"), [end[1:] for end in ENDS], ids=[end[0] for end in ENDS])
async def test_a_request_that_ends_well_has_used_what_was_counted(
    kit: Kit, fields: dict[str, Any], tokens: int
) -> None:
    await limited(kit, ROOMY)
    async with kit.http.post(POST, json=chat(**fields)) as response:
        await response.read()

    assert used(kit) == (1, tokens, 0)


async def test_usage_that_nobody_asked_for_stays_with_the_gateway(kit: Kit) -> None:
    [replica] = await limited(kit, ROOMY)
    without = await kit.chunks_of(chat(n=2))
    asked = await kit.chunks_of(chat(n=2, stream_options={"include_usage": True}))

    assert [seen.body["stream_options"]["include_usage"] for seen in replica.seen] == [True, True]
    assert not [chunk for chunk in without if "usage" in chunk]
    assert json.loads(asked[-2])["usage"]["completion_tokens"] == 8
    assert len(asked) == len(without) + 1


async def test_a_stream_that_moves_between_replicas_counts_its_prompt_once_and_each_token_once(kit: Kit) -> None:
    first, second = await limited(kit, ROOMY, 2)
    first.faults, second.faults = [Fault("reset", after=3)], [Fault("moved", after=3)]

    assert await kit.text_of(chat(max_tokens=1000)) == first.text()
    assert len(first.seen) + len(second.seen) >= 2
    assert used(kit) == (1, PROMPT_IDS + 8, 0)


async def test_a_stream_that_cannot_go_on_counts_what_was_delivered(kit: Kit) -> None:
    [replica] = await limited(kit, ROOMY)
    replica.faults = [Fault("error_event", after=2, status=400, code="bad_grammar")]
    await kit.chunks_of(chat(max_tokens=1000))

    assert used(kit) == (1, PROMPT_IDS + 2, 0)


@pytest.mark.parametrize(("fields", "most"), [({}, 60), ({"n": 2}, 120)])
async def test_a_stream_whose_client_leaves_counts_what_was_made(kit: Kit, fields: dict[str, Any], most: int) -> None:
    [replica] = await limited(kit, ROOMY, tokens=10**6, delay=0.01)
    asking = asyncio.create_task(kit.chunks_of(chat(max_tokens=1000, **fields)))
    await kit.until(lambda: replica.written > 3000)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    await kit.until(lambda: used(kit)[2] == 0)
    requests, tokens, _ = used(kit)
    assert requests == 1
    assert PROMPT_IDS + 5 < tokens < most


async def test_a_whole_answer_that_nobody_waited_for_counts_as_it_was_reserved(kit: Kit) -> None:
    [replica] = await limited(kit, ROOMY, delay=1.0)
    asking = asyncio.create_task(error_of(kit, json=chat(max_tokens=1000)))
    await kit.until(lambda: replica.running == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    await kit.until(lambda: used(kit)[2] == 0)
    requests, tokens, _ = used(kit)
    assert requests == 1
    assert tokens == 1000 + -(-len(json.dumps(chat()["messages"])) // 4)


NOWHERE: list[tuple[str, list[Fault], dict[str, Any], int]] = [
    ("invalid for the replica", [Fault("status", status=400, code="x")], {"json": chat()}, 400),
    ("never ready", [Fault("status", status=503)] * 99, {"json": chat()}, 503),
    ("rate limited there", [Fault("status", status=429, code="rate_limited")], {"json": chat()}, 429),
    ("no such model", [], {"json": chat("nothing")}, 404),
    ("no JSON", [], {"data": b"{"}, 400),
    ("invalid here", [], {"json": chat(n=0)}, 400),
]


@pytest.mark.parametrize(("faults", "request_", "status"), [n[1:] for n in NOWHERE], ids=[n[0] for n in NOWHERE])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_no_replica_took_uses_nothing(
    kit: Kit, faults: list[Fault], request_: dict[str, Any], status: int, stream: bool
) -> None:
    [replica] = await limited(kit, ROOMY)
    replica.faults = list(faults)
    if "json" in request_:
        request_ = {"json": {**request_["json"], "stream": stream}}

    assert (await error_of(kit, **request_))[0] == status
    assert used(kit) == (0, 0, 0)


async def test_a_request_whose_replicas_cannot_be_reached_uses_nothing(kit: Kit) -> None:
    [replica] = await limited(kit, ROOMY)
    await replica.stop()

    assert (await error_of(kit, json=chat()))[0] == 503
    assert used(kit) == (0, 0, 0)


async def test_a_request_that_its_replicas_lost_counts_as_it_was_reserved(kit: Kit) -> None:
    [replica] = await limited(kit, ROOMY)
    replica.faults = [Fault("before")] * 99

    assert (await error_of(kit, json=chat(max_tokens=500)))[0] == 502
    assert used(kit)[0] == 1
    assert used(kit)[1] > 500


async def test_a_client_that_leaves_in_the_middle_of_its_body_uses_nothing(kit: Kit) -> None:
    await limited(kit, ROOMY)
    host, port = kit.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {POST} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 1000"
    writer.write(f"{head}\r\n\r\n{{".encode())
    await kit.until(lambda: used(kit)[2] == 1)
    writer.close()

    await kit.until(lambda: used(kit) == (0, 0, 0))


async def test_another_quota_counts_at_once_for_requests_that_run(kit: Kit) -> None:
    [replica] = await limited(kit, {}, delay=0.1)
    asking = asyncio.create_task(kit.text_of())
    await kit.until(lambda: replica.running == 1)
    kit.quota = {"maxConcurrentRequests": 1}
    await kit.publish()
    assert (await error_of(kit, json=chat()))[1]["param"] == "maxConcurrentRequests"
    kit.quota = {"maxConcurrentRequests": 2}
    await kit.publish()

    assert [await kit.text_of(), await asking] == [replica.text()] * 2
    assert used(kit)[2] == 0


async def test_a_tenant_that_is_deleted_keeps_its_streams_and_loses_its_key(kit: Kit) -> None:
    [replica] = await limited(kit, ROOMY, tokens=20, delay=0.02)
    asking = asyncio.create_task(kit.text_of())
    await kit.until(lambda: replica.running == 1)
    kit.tenants = [tenant("globex", OTHER_KEY)]
    await kit.publish()

    assert (await error_of(kit, json=chat()))[0] == 401
    assert await asking == replica.text()
    assert used(kit) == (1, PROMPT_IDS + 20, 0)


async def test_a_client_that_does_not_read_holds_its_own_place_only(kit: Kit) -> None:
    kit.tenants = [tenant("acme", KEY, quota={"maxConcurrentRequests": 1}), tenant("globex", OTHER_KEY)]
    await kit.up(tokens=10**9, padding="x" * 4000)
    with await open_unread(kit.url, chat(stream=True)):
        await kit.until(lambda: used(kit)[2] == 1)
        assert (await error_of(kit, json=chat()))[0] == 429
        started = time.monotonic()
        assert (await error_of(kit, key=OTHER_KEY, json=chat("nothing")))[0] == 404
        assert time.monotonic() - started < 1.0

    await kit.until(lambda: used(kit)[2] == 0)
    assert account(kit).told().rejected == 1
