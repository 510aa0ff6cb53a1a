"""A step may give a request several tokens: what clients get is the same, in fewer chunks."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from lorafleet_runtime.frontend.scripted_engine import ScriptedEngine

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "seed": 3}
ASKED: list[dict[str, Any]] = [
    {},
    {"max_tokens": 7},
    {"stop": [", w"]},  # ends in the middle of a delta
    {"stop": ["rld"], "max_tokens": 12},
    {"logprobs": True, "top_logprobs": 2},
    {"logprobs": True, "stop": ["llo"]},
    {"return_token_ids": True, "stop": ["never"]},
]


async def streamed(http: httpx.AsyncClient, asked: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """What all chunks say together, and how many there were."""
    asked = CHAT | asked | {"stream": True, "stream_options": {"include_usage": True}}
    lines = (await http.post("/v1/chat/completions", json=asked)).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line and line != "data: [DONE]"]
    said: dict[str, Any] = {"text": "", "ids": [], "logprobs": [], "reason": None, "usage": chunks[-1]["usage"]}
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        said["text"] += choice["delta"].get("content") or ""
        said["ids"] += choice.get("token_ids", [])
        said["logprobs"] += (choice["logprobs"] or {}).get("content", [])
        said["reason"] = choice["finish_reason"]
    return said, len(chunks)


async def generated(http: httpx.AsyncClient) -> float:
    name = 'vllm:generation_tokens_total{model_name="tiny"} '
    lines = (await http.get("/metrics")).text.splitlines()
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("at_once", [2, 5, 50])
async def test_a_stream_says_the_same(
    http: httpx.AsyncClient, engine: ScriptedEngine, asked: dict[str, Any], at_once: int
) -> None:
    alone, chunks = await streamed(http, asked)
    before = await generated(http)
    engine.at_once = at_once
    said, fewer = await streamed(http, asked)

    assert said == alone
    assert fewer < chunks
    assert await generated(http) == 2 * before


@pytest.mark.parametrize("asked", ASKED, ids=str)
async def test_a_whole_answer_is_the_same(
    http: httpx.AsyncClient, engine: ScriptedEngine, asked: dict[str, Any]
) -> None:
    alone = (await http.post("/v1/chat/completions", json=CHAT | asked)).json()
    engine.at_once = 4
    together = (await http.post("/v1/chat/completions", json=CHAT | asked)).json()
    assert (together["choices"], together["usage"]) == (alone["choices"], alone["usage"])


@pytest.mark.parametrize("cut", range(4))
async def test_a_stream_is_taken_up_after_any_chunk(http: httpx.AsyncClient, engine: ScriptedEngine, cut: int) -> None:
    engine.at_once = 4
    asked = CHAT | {"stream": True, "return_token_ids": True}
    lines = (await http.post("/v1/chat/completions", json=asked)).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line and line != "data: [DONE]"]
    delivered = [token for chunk in chunks[: cut + 1] for token in chunk["choices"][0]["token_ids"]]
    sent = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[: cut + 1])

    rest, _ = await streamed(http, {"return_token_ids": True, "resume": {"output_token_ids": delivered}})

    assert sent + rest["text"] == "Hello, wörld 😀!"
    assert rest["usage"]["completion_tokens"] == len(delivered) + len(rest["ids"])
