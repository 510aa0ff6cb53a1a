"""A closed loop of streamed completions over HTTP, with what each request waited for: the same for every system.

Prompts are token ids and answers are counted in token ids, so that no system's tokenizer or text plays a part.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import aiohttp


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: greedy, exactly `tokens` tokens whatever they are."""

    model: str
    prompt: list[int]
    tokens: int


@dataclass(slots=True)
class Answer:
    """Token ids so far, and `time.perf_counter` of the sending, of the first token and of the last."""

    sent: float
    first: float = 0.0
    last: float = 0.0
    token_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`answers` in the order of the requests, None for those never sent; `cut`: time was up before the last token."""

    answers: list[Answer | None]
    seconds: float
    cut: bool

    @property
    def output_tokens(self) -> int:
        return sum(len(a.token_ids) for a in self.answers if a)

    @property
    def speed(self) -> float:
        """Output tokens a second, from the first sending to the last token or to the end of the time."""
        return max(self.output_tokens, 1) / self.seconds  # cut off before its first token: in its favour

    @property
    def ttfts(self) -> list[float]:
        """Seconds to the first token of every request that was sent, in order; of one that has none yet, the seconds
        that it waited."""
        end = max(max(a.sent, a.last) for a in self.answers if a)
        return sorted((a.first or end) - a.sent for a in self.answers if a)

    @property
    def ttft(self) -> float:
        """Median seconds to the first token."""
        return statistics.median(self.ttfts)

    @property
    def tpot(self) -> float:
        """Median over requests of the seconds per token after the first."""
        paces = [(a.last - a.first) / (len(a.token_ids) - 1) for a in self.answers if a and len(a.token_ids) > 1]
        return statistics.median(paces) if paces else float("nan")


def asks(models: Sequence[str], count: int, prompt: int, tokens: int, seed: int) -> list[Ask]:
    """`count` distinct random prompts of `prompt` tokens, models in turn."""
    rng = random.Random(seed)
    return [
        Ask(models[i % len(models)], [rng.randrange(10, 49000) for _ in range(prompt)], tokens) for i in range(count)
    ]


def closed_loop(url: str, asked: Sequence[Ask], concurrency: int, seconds: float) -> Outcome:
    """`concurrency` clients, each sending its next request when its last has ended; requests are taken in order.

    After `seconds` the open connections are closed and what has arrived is counted. Exits on a refused request."""
    try:
        return asyncio.run(_closed_loop(url, asked, concurrency, seconds))
    except _BadAnswer as error:
        sys.exit(f"{url} {error}")


class _BadAnswer(Exception):
    """What a server did with a request, instead of answering it."""


async def _closed_loop(url: str, asked: Sequence[Ask], concurrency: int, seconds: float) -> Outcome:
    answers: list[Answer | None] = [None] * len(asked)
    queue = iter(range(len(asked)))
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        begun = time.perf_counter()
        clients = [asyncio.create_task(_client(http, url, asked, queue, answers)) for _ in range(concurrency)]
        _, late = await asyncio.wait(clients, timeout=seconds)
        for client in late:
            client.cancel()
        for result in await asyncio.gather(*clients, return_exceptions=True):
            if isinstance(result, Exception):  # not the cancellation of who is late
                raise result
    end = begun + seconds if late else max(a.last for a in answers if a)
    return Outcome(answers, end - begun, bool(late))


async def _client(
    http: aiohttp.ClientSession, url: str, asked: Sequence[Ask], queue: Iterator[int], answers: list[Answer | None]
) -> None:
    for index in queue:
        answer = answers[index] = Answer(time.perf_counter())
        await _complete(http, url, asked[index], answer)
        if len(answer.token_ids) != asked[index].tokens:
            made, wanted = len(answer.token_ids), asked[index].tokens
            raise _BadAnswer(f"gave {made} tokens for {asked[index].model}, not {wanted}")


async def _complete(http: aiohttp.ClientSession, url: str, ask: Ask, answer: Answer) -> None:
    body = {
        "model": ask.model, "prompt": ask.prompt, "max_tokens": ask.tokens, "temperature": 0, "ignore_eos": True,
        "stream": True, "return_token_ids": True,
    }  # fmt: skip
    async with http.post(f"{url}/v1/completions", json=body) as response:
        if response.status != 200:
            raise _BadAnswer(f"refused a request for {ask.model}: {(await response.text())[:500]}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise _BadAnswer(f"broke an answer of {ask.model} off: {event['error']}")
            for choice in event["choices"]:
                if ids := choice.get("token_ids"):
                    answer.last = time.perf_counter()
                    answer.first = answer.first or answer.last
                    answer.token_ids += ids
