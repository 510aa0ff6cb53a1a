"""Requests that kill replicas, and those that only ran beside them."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from lorafleet_gateway.suspects import SuspectLines
from tests.gateway.fake_runtime import FakeRuntime, Fault
from tests.gateway.gateway_kit import Kit, chat

BASE, OTHER = ("models", "smol"), ("models", "large")


async def test_a_request_that_kills_after_every_token_is_given_up_too(kit: Kit) -> None:
    replicas = await kit.up(3, tokens=40)
    for replica in replicas:
        replica.faults = [Fault("reset", after=1)] * 50

    chunks = await kit.chunks_of(chat())

    assert json.loads(chunks[-1])["error"]["code"] == "replica_failed"
    assert sum(len(replica.seen) for replica in replicas) == kit.limits.losses


@pytest.mark.parametrize("fault", [
    Fault("before"), Fault("status", status=503, code="engine_failed"), Fault("status", status=500),
], ids=lambda fault: f"{fault.kind}-{fault.code}")  # fmt: skip
async def test_a_whole_answer_that_kills_is_given_up_and_clients_are_told_not_to_ask_again(
    kit: Kit, fault: Fault
) -> None:
    [replica] = await kit.up()
    replica.faults = [fault] * 50

    async with kit.http.post("/v1/chat/completions", json=chat()) as response:
        error = (await response.json())["error"]

    assert (response.status, error["code"]) == (502, "replica_failed")
    assert f"{kit.limits.losses} replicas of `pirate` in a row were lost with this request" in error["message"]
    assert response.headers["x-should-retry"] == "false"
    assert len(replica.seen) == kit.limits.losses


class Mortal(FakeRuntime):
    """Dies of a request that says so, with all that runs there, and is back at once."""

    deaths: list[asyncio.Task[None]]

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        if "poison" in await request.text():
            self.deaths.append(asyncio.create_task(self._die()))
        return await super()._complete(request)

    async def _die(self) -> None:
        await asyncio.sleep(0.03)  # whoever comes in the same moment is taken along
        await self.stop()
        await self.start()


async def test_who_runs_beside_a_request_that_kills_loses_nothing(kit: Kit) -> None:
    replica = Mortal("smol-0", tokens=40, delay=0.02)
    replica.deaths = []
    await replica.start()
    kit.replicas.append(replica)
    await kit.publish()
    await kit.serve()
    poison = chat(messages=[{"role": "user", "content": "poison"}])

    *texts, chunks = await asyncio.gather(*(kit.text_of() for _ in range(6)), kit.chunks_of(poison))
    await asyncio.gather(*replica.deaths)

    assert texts == [replica.text()] * 6
    assert json.loads(chunks[-1])["error"]["code"] == "replica_failed"
    assert len(replica.deaths) == kit.limits.losses


async def test_a_line_has_one_head_and_another_model_a_line_of_its_own() -> None:
    lines = SuspectLines()
    first, second, elsewhere = lines.place(BASE), lines.place(BASE), lines.place(OTHER)
    await first.take()
    await first.take()
    await elsewhere.take()
    waiting = asyncio.create_task(second.take())
    await asyncio.sleep(0)
    assert not waiting.done()
    first.leave()
    first.leave()

    await asyncio.wait_for(waiting, 5)
    assert not lines.place(OTHER)._held


async def test_who_has_been_tried_long_enough_lets_the_next_one_come() -> None:
    lines = SuspectLines()
    first, second = lines.place(BASE), lines.place(BASE)
    await first.take()
    first.trying(0.01)

    await asyncio.wait_for(second.take(), 5)


async def test_time_without_an_attempt_is_not_counted_and_who_leaves_while_waiting_takes_no_turn() -> None:
    lines = SuspectLines()
    first, second = lines.place(BASE), lines.place(BASE)
    await first.take()
    first.trying(0.01)
    first.stop_trying()
    waiting = asyncio.create_task(second.take())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    second.leave()
    first.leave()

    await asyncio.wait_for(lines.place(BASE).take(), 5)
