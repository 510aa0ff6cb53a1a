"""The load client against a server that answers at a known pace."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator

import pytest
from aiohttp import web

from bench.load_client import Answer, Outcome, asks, closed_loop


class _Paced:
    """Two tokens at once, then one an event; `stuck` models stop after their first event."""

    def __init__(self) -> None:
        self.most_open = self._open = 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        response = web.StreamResponse()
        await response.prepare(request)
        left = body["max_tokens"]
        while left:
            ids = list(range(min(left, 2 if left == body["max_tokens"] else 1)))
            left -= len(ids)
            event = {"choices": [{"index": 0, "text": "", "token_ids": ids}]}
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            if body["model"] == "stuck":
                await asyncio.sleep(60)
            await asyncio.sleep(0.001)
        self._open -= 1
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture
def server() -> Iterator[tuple[str, _Paced]]:
    paced = _Paced()
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_post("/v1/completions", paced.complete)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", paced
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_every_request_is_answered_and_never_more_are_open_than_there_are_clients(server: tuple[str, _Paced]) -> None:
    url, paced = server
    outcome = closed_loop(url, asks(["a", "b"], 9, 5, 7, seed=1), 3, 30.0)
    assert not outcome.cut
    assert outcome.output_tokens == 9 * 7
    assert paced.most_open == 3


def test_what_arrived_before_the_end_of_the_time_counts(server: tuple[str, _Paced]) -> None:
    outcome = closed_loop(server[0], asks(["a", "stuck"], 4, 5, 7, seed=1), 4, 0.5)
    assert outcome.cut
    assert outcome.seconds == 0.5
    assert outcome.output_tokens == 2 * 7 + 2 * 2


def test_a_refused_request_ends_the_bench_with_its_reason(server: tuple[str, _Paced]) -> None:
    with pytest.raises(SystemExit, match="refused a request for a: 404"):
        closed_loop(f"{server[0]}/elsewhere", asks(["a"], 1, 5, 7, seed=1), 1, 30.0)


def test_prompts_are_distinct_and_models_take_turns() -> None:
    asked = asks(["a", "b", "c"], 6, 128, 4, seed=3)
    assert [ask.model for ask in asked] == ["a", "b", "c", "a", "b", "c"]
    assert len({tuple(ask.prompt) for ask in asked}) == 6


def test_a_request_without_a_token_counts_with_the_time_it_waited() -> None:
    outcome = Outcome([Answer(0.0, 1.0, 4.0, [1, 2, 3, 4]), Answer(0.0), None], 4.0, cut=True)
    assert outcome.ttfts == [1.0, 4.0]
    assert outcome.tpot == 1.0
    assert outcome.speed == 1.0
