from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from lorafleet_runtime.frontend.scripted_engine import ScriptedEngine
from lorafleet_runtime.frontend.server import create_app
from lorafleet_runtime.frontend.service import Service
from lorafleet_runtime.frontend.tokenizer import ModelTokenizer

EOS = 258
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "tiny", "prompt": "hi"}


def events(response: httpx.Response) -> list[Any]:
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_a_chat_in_one_piece(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], seed=7, temperature=0.5
    )

    assert answer.choices[0].message.content == "Hello, wörld 😀!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len("user\nhi\nassistant\n") + 3  # and three special tokens
    assert answer.usage.completion_tokens == len("Hello, wörld 😀!".encode()) + 1
    assert (engine.requests[0].sampling.seed, engine.requests[0].sampling.temperature) == (7, 0.5)


async def test_a_stream_has_whole_characters_a_role_and_usage(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]

    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "Hello, wörld 😀!"
    assert all("\ufffd" not in (delta.content or "") for delta in deltas)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len("Hello, wörld 😀!".encode()) + 1


async def test_a_completion_stream_ends_with_done(http: httpx.AsyncClient) -> None:
    body = events(await http.post("/v1/completions", json=TEXT | {"max_tokens": 50, "stream": True}))

    assert "".join(event["choices"][0]["text"] for event in body[:-1]) == "Hello, wörld 😀!"
    assert body[-1] == "[DONE]"
    assert all(event["object"] == "text_completion" for event in body[:-1])


async def test_a_stop_string_ends_the_request_in_the_engine_too(
    http: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    answer = (await http.post("/v1/chat/completions", json=CHAT | {"stop": [", w"]})).json()

    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len("Hello, w")
    assert engine.aborted == [engine.requests[0].request_id]


async def test_every_choice_has_a_seed_and_a_stream_of_its_own(http: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.reply = lambda request: [*f"seed {request.sampling.seed}".encode(), EOS]
    asked = {"model": "tiny", "prompt": ["a", "bc"], "n": 2, "seed": 40, "max_tokens": 20}
    whole = (await http.post("/v1/completions", json=asked)).json()
    streamed = events(await http.post("/v1/completions", json=asked | {"stream": True}))[:-1]

    assert [choice["text"] for choice in whole["choices"]] == ["seed 40", "seed 41"] * 2
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert whole["usage"]["prompt_tokens"] == 3
    texts = [""] * 4
    for event in streamed:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == ["seed 40", "seed 41"] * 2
    assert len({request.request_id for request in engine.requests}) == 8


async def test_token_ids_stand_for_the_text_of_their_chunk(http: httpx.AsyncClient, tokenizer: ModelTokenizer) -> None:
    asked = CHAT | {"stream": True, "return_token_ids": True, "stop": ["never"]}
    body = events(await http.post("/v1/chat/completions", json=asked))[:-1]

    assert body[0]["prompt_token_ids"][0] == tokenizer.backend.token_to_id("<|im_start|>")
    for event in body:
        choice = event["choices"][0]
        ids = [token_id for token_id in choice["token_ids"] if token_id != EOS]
        assert bytes(ids).decode() == choice["delta"].get("content", "")
    ids = [token_id for event in body for token_id in event["choices"][0]["token_ids"]]
    assert ids == [*"Hello, wörld 😀!".encode(), EOS]


@pytest.mark.parametrize("cut", range(6))
async def test_a_resumed_stream_continues_the_text(http: httpx.AsyncClient, cut: int) -> None:
    asked = CHAT | {"stream": True, "return_token_ids": True, "seed": 1, "stream_options": {"include_usage": True}}
    whole = events(await http.post("/v1/chat/completions", json=asked))[:-1]
    delivered = [token_id for event in whole[: cut + 1] for token_id in event["choices"][0]["token_ids"]]
    sent = "".join(event["choices"][0]["delta"].get("content", "") for event in whole[: cut + 1])
    asked["resume"] = {"output_token_ids": delivered}
    rest = events(await http.post("/v1/chat/completions", json=asked))[:-1]

    deltas = [event["choices"][0]["delta"] for event in rest[:-1]]
    assert sent + "".join(delta.get("content", "") for delta in deltas) == "Hello, wörld 😀!"
    assert all("role" not in delta for delta in deltas)
    assert rest[-1]["usage"] == whole[-1]["usage"]


@pytest.mark.parametrize(
    ("delivered", "extra", "reason"),
    [("Hello, wörld", {"stop": "wörld"}, "stop"), ("Hello", {"max_tokens": 5}, "length")],
)
async def test_a_request_that_had_everything_when_resumed_just_ends(
    http: httpx.AsyncClient, engine: ScriptedEngine, delivered: str, extra: dict[str, Any], reason: str
) -> None:
    resume = {"output_token_ids": list(delivered.encode())}
    body = events(await http.post("/v1/completions", json=TEXT | extra | {"stream": True, "resume": resume}))

    assert [event["choices"][0]["finish_reason"] for event in body[:-1]] == [reason]
    assert engine.requests == []


async def test_an_engine_that_dies_before_the_first_token_is_a_503(
    http: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.hold()
    asked = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT | {"stream": True}))
    await asyncio.sleep(0.01)
    engine.die("out of memory")
    response = await asked

    assert (response.status_code, error_of(response)["code"]) == (503, "engine_failed")
    assert "out of memory" in error_of(response)["message"]


async def test_an_engine_that_dies_in_mid_stream_is_the_last_event(
    http: httpx.AsyncClient, engine: ScriptedEngine, service: Service
) -> None:
    engine.seconds = 0.005
    asked = asyncio.create_task(http.post("/v1/chat/completions", json=CHAT | {"stream": True}))
    await asyncio.sleep(0.03)
    engine.die("gone")
    body = events(await asked)

    assert body[-1]["error"]["code"] == "engine_failed"
    assert service.open_requests == 0


@pytest.fixture
async def address(service: Service) -> AsyncIterator[str]:
    """A real server on a real socket: a disconnect is the kernel's word here."""
    config = uvicorn.Config(create_app(service), port=0, log_config=None, lifespan="off", http="httptools")
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    running = asyncio.create_task(server._serve(sockets=[listener]))
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await running


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("hold", [True, False])
async def test_a_client_that_leaves_ends_its_generation(
    address: str, engine: ScriptedEngine, service: Service, stream: bool, hold: bool
) -> None:
    """Queued or running, streaming or not; every choice of it."""
    engine.reply = lambda request: [ord("x")] * 10_000
    engine.seconds = 0.001
    if hold:
        engine.hold()
    asked = TEXT | {"stream": stream, "max_tokens": 200, "n": 2}
    async with httpx.AsyncClient() as http:
        task = asyncio.create_task(http.post(f"{address}/v1/completions", json=asked))
        await until(lambda: len(engine.requests) == 2)
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait([task])
    await until(lambda: service.open_requests == 0)

    assert sorted(engine.aborted) == sorted(request.request_id for request in engine.requests)


async def test_tokens_arrive_as_they_are_made(address: str, engine: ScriptedEngine) -> None:
    engine.reply = lambda request: [*b"abc", EOS]
    engine.hold()
    received: list[str] = []
    async with httpx.AsyncClient() as http:
        asking = http.stream("POST", f"{address}/v1/completions", json=TEXT | {"stream": True})
        task = asyncio.ensure_future(asking.__aenter__())
        await until(lambda: len(engine.requests) == 1)
        engine.step()
        response = await task
        lines = response.aiter_lines()
        for _ in range(3):
            received.append(await anext(line async for line in lines if line))
            engine.step()
        await asking.__aexit__(None, None, None)

    assert [json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in received] == ["a", "b", "c"]
