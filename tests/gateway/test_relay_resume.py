"""Streams that lose their replica: the client must see one answer, without a gap and without a repetition."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from tests.gateway.fake_runtime import FakeRuntime, Fault
from tests.gateway.gateway_kit import OLD_REVISION, Kit, adapter, chat, placement

DEATHS = [
    Fault("reset", after=3),
    Fault("cut", after=3),
    Fault("eof", after=3),
    Fault("error_event", after=3, status=500, code="engine_dead"),
    Fault("reset", after=0),
    Fault("cut", after=7),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("fault", DEATHS, ids=lambda fault: f"{fault.kind}-{fault.after}")
async def test_a_stream_whose_replica_dies_goes_on_elsewhere_unbroken(kit: Kit, fault: Fault, path: str) -> None:
    first, second = await kit.up(2)
    first.faults, second.faults = [fault], [fault]
    body = {"model": "pirate", "prompt": "x"} if path == "/v1/completions" else chat()

    text = await kit.text_of(body, path)

    assert text == first.text()
    assert len(first.seen) + len(second.seen) >= 2
    assert first.seen and second.seen


async def test_deaths_again_and_again_are_survived_as_long_as_there_is_progress(kit: Kit) -> None:
    replicas = await kit.up(3, tokens=15 * kit.limits.forgiving_tokens)
    for replica in replicas:
        replica.faults = [Fault("reset", after=kit.limits.forgiving_tokens)] * 50

    assert await kit.text_of() == replicas[0].text()
    resumes = kit.metrics.registry.get_sample_value("lorafleet_gateway_resumes_total", {"base_model": "models/smol"})
    assert resumes is not None and resumes >= 14


async def test_a_real_client_sees_one_stream_with_usage_of_the_whole(kit: Kit) -> None:
    first, second = await kit.up(2)
    first.faults, second.faults = [Fault("reset", after=4)], [Fault("reset", after=4)]

    async with kit.client() as client:
        stream = await client.completions.create(
            model="pirate", prompt="hi", stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]

    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == first.text()
    assert {chunk.id for chunk in chunks} == {"answer-0"}
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [8]


@pytest.mark.parametrize("usage", [False, True])
async def test_a_replica_that_dies_after_its_last_token_is_not_asked_again(kit: Kit, usage: bool) -> None:
    first, second = await kit.up(2)
    first.faults, second.faults = [Fault("no_done")], [Fault("no_done")]
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if usage else {}

    chunks = await kit.chunks_of(chat(**options))

    assert len(first.seen) + len(second.seen) == 1
    assert chunks[-1] == "[DONE]"
    last = json.loads(chunks[-2])
    assert last.get("usage") == ({"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11} if usage else None)


async def test_a_lone_replica_that_restarts_goes_on_with_its_streams(kit: Kit) -> None:
    [replica] = await kit.up(tokens=40, delay=0.03)
    asking = asyncio.create_task(kit.text_of())
    while replica.written < 1000:
        await asyncio.sleep(0.01)

    await replica.stop()
    replica.incarnation = "two"
    await asyncio.sleep(0.5)
    await replica.start()
    await kit.publish()

    assert await asking == replica.text()
    assert replica.seen[-1].body["resume"]["output_token_ids"]


async def test_a_stream_that_nobody_can_go_on_with_ends_with_an_error_event(kit: Kit) -> None:
    [replica] = await kit.up(tokens=100, delay=0.02)
    asking = asyncio.create_task(kit.chunks_of(chat()))
    while replica.written < 1000:
        await asyncio.sleep(0.01)
    lost = time.monotonic()
    await replica.stop()

    chunks = await asking

    assert 1.5 < time.monotonic() - lost < 4.0
    assert "[DONE]" not in chunks
    error = json.loads(chunks[-1])["error"]
    assert (error["code"], error["type"]) == ("replica_failed", "server_error")
    await kit.until(lambda: 'code="502"' in kit.metrics.render().decode())


async def test_a_request_that_kills_its_replicas_is_given_up(kit: Kit) -> None:
    replicas = await kit.up(3, tokens=8)
    for replica in replicas:
        replica.faults = [Fault("reset", after=0)] * 50

    chunks = await kit.chunks_of(chat())

    assert json.loads(chunks[-1])["error"]["code"] == "replica_failed"
    assert sum(len(replica.seen) for replica in replicas) == kit.limits.losses


async def test_a_moved_stream_goes_where_its_pages_were_pushed(kit: Kit) -> None:
    first, second, target = await kit.up(3, delay=0.02)
    await kit.publish([adapter("acme.pirate", [placement(first.name)])])
    first.faults = [Fault("moved", after=5, to=target.name)]
    target.others_waiting = 50  # so that nothing but the hint leads there
    asking = asyncio.create_task(kit.text_of())
    while not first.running:
        await asyncio.sleep(0.01)
    await kit.publish()

    assert await asking == target.text()
    assert not second.seen
    assert len(target.seen[0].body["resume"]["output_token_ids"]) == 5


async def test_several_choices_end_with_an_error_event_after_the_first_byte(kit: Kit) -> None:
    first, second = await kit.up(2)
    first.faults, second.faults = [Fault("reset", after=3)], [Fault("reset", after=3)]

    chunks = await kit.chunks_of(chat(n=2))

    assert json.loads(chunks[-1])["error"]["code"] == "replica_failed"
    assert len(first.seen) + len(second.seen) == 1
    assert "return_token_ids" not in (first.seen or second.seen)[0].body


async def test_several_choices_are_tried_again_before_the_first_byte(kit: Kit) -> None:
    first, second = await kit.up(2)
    first.faults, second.faults = [Fault("before")], [Fault("before")]

    chunks = await kit.chunks_of(chat(n=2))

    assert chunks[-1] == "[DONE]"
    assert {json.loads(chunk)["model"] for chunk in chunks[:-1]} == {"pirate"}


async def test_an_error_event_that_is_the_clients_fault_is_passed_on(kit: Kit) -> None:
    [replica] = await kit.up()
    replica.faults = [Fault("error_event", after=2, status=400, code="bad_grammar")]

    chunks = await kit.chunks_of(chat())

    assert json.loads(chunks[-1])["error"]["code"] == "bad_grammar"
    assert len(replica.seen) == 1


@pytest.mark.parametrize("after", [0, 3])
async def test_a_hung_replica_loses_its_streams_when_the_operator_gives_it_up(kit: Kit, after: int) -> None:
    first, second = await kit.up(2)
    first.faults, second.faults = [Fault("hang", after=after)], [Fault("hang", after=after)]
    asking = asyncio.create_task(kit.text_of())
    while not first.running + second.running:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    hung = first if first.running else second
    (second if hung is first else first).faults.clear()

    hung.state = "Failed"
    await kit.publish()

    assert await asking == first.text()


async def test_an_answer_is_never_continued_by_another_revision(kit: Kit) -> None:
    first, second = await kit.up(2, tokens=100, delay=0.02)
    await kit.publish([adapter("acme.pirate", [placement("smol-0")])])
    asking = asyncio.create_task(kit.chunks_of(chat()))
    while first.written < 1000:
        await asyncio.sleep(0.01)
    await kit.publish([adapter("acme.pirate", [placement("smol-1", OLD_REVISION)], revision=OLD_REVISION)])
    await first.stop()

    chunks = await asking

    assert json.loads(chunks[-1])["error"]["code"] == "replica_failed"
    assert not second.seen


async def test_a_stopping_gateway_tells_the_streams_it_cannot_finish(kit: Kit) -> None:
    [replica] = await kit.up(tokens=10**6, delay=0.01)
    asking = asyncio.create_task(kit.chunks_of(chat()))
    while not replica.written:
        await asyncio.sleep(0.01)

    assert kit._server is not None
    kit._server.end()

    chunks = await asking
    assert json.loads(chunks[-1])["error"]["code"] == "gateway_stopping"


def test_the_fake_says_what_a_broken_stream_would_look_like() -> None:
    # The negative control of this file: a repeated or missing token changes the text.
    fake = FakeRuntime("fake", tokens=3)

    assert fake.text() == "w0 w1 w2 "
