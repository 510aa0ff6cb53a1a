from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lorafleet_gateway.client_request import ClientRequest, parse, read_body
from lorafleet_gateway.errors import ApiError


def parsed(**fields: Any) -> ClientRequest:
    return parse("/v1/completions", json.dumps({"model": "pirate", **fields}).encode())


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        (b"", None, "not valid JSON"),
        (b'{"model": "a",, }', None, "byte 14"),
        (b'{"model": "a"} x', None, "byte 16"),
        (b"[1]", None, "must be a JSON object"),
        (b"[" * 200_000, None, "JSON"),
        (b"{}", "model", "missing"),
        (b'{"model": null}', "model", "missing"),
        (b'{"model": 7}', "model", "Expected `str | null`, got `int`"),
        (b'{"model": "a", "stream": "yes"}', "stream", "Expected `bool | null`"),
        (b'{"model": "a", "n": 0}', "n", "at least 1"),
        (b'{"model": "a", "n": 1.5}', "n", "Expected `int | null`"),
        (b'{"model": "a", "resume": {"output_token_ids": [1]}}', "resume", "leave it out"),
    ],
)
def test_a_bad_body_is_a_400_that_says_where(body: bytes, param: str | None, text: str) -> None:
    with pytest.raises(ApiError) as raised:
        parse("/v1/completions", body)

    assert raised.value.status == 400
    assert raised.value.param == param
    assert text in raised.value.message


@pytest.mark.parametrize(
    ("fields", "single"),
    [
        ({}, True), ({"n": None}, True), ({"n": 2}, False), ({"best_of": 3}, False),
        ({"prompt": "x"}, True), ({"prompt": ["x"]}, True), ({"prompt": ["x", "y"]}, False),
        ({"prompt": [1, 2]}, True), ({"prompt": [[1, 2]]}, True), ({"prompt": [[1], [2]]}, False),
        ({"prompt": []}, True), ({"messages": [{}, {}]}, True),
    ],
)  # fmt: skip
def test_only_one_choice_of_one_prompt_can_be_resumed(fields: dict[str, Any], single: bool) -> None:
    assert parsed(**fields).single is single


def test_a_replicas_body_has_the_clients_fields_to_the_byte() -> None:
    text = b'{"model":"pirate","stream":true,"temperature":0.10000000000000000555,"x":"\\u00e9","y":1e400}'
    body = parse("/v1/completions", text).upstream_body("acme.pirate")

    assert b'"temperature":0.10000000000000000555,"x":"\\u00e9","y":1e400' in body
    assert b'"model":"acme.pirate"' in body


def test_a_stream_is_asked_for_with_token_ids_and_resumed_with_them() -> None:
    request = parsed(stream=True)

    assert json.loads(request.upstream_body("a.b"))["return_token_ids"] is True
    assert "resume" not in json.loads(request.upstream_body("a.b"))
    assert json.loads(request.upstream_body("a.b", [1, 2]))["resume"] == {"output_token_ids": [1, 2]}


def test_a_whole_answer_is_asked_for_as_the_client_did() -> None:
    assert json.loads(parsed(n=2).upstream_body("a.b")) == {"model": "a.b", "n": 2}


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (None, {"include_usage": True}),
        ({"include_usage": False, "x": 1}, {"include_usage": True, "x": 1}),
        ({"include_usage": True}, {"include_usage": True}),
        (3, 3),  # for the replica to refuse
    ],
)
def test_a_stream_that_cannot_be_resumed_is_made_to_tell_its_usage(options: Any, sent: Any) -> None:
    body = json.loads(parsed(stream=True, n=2, stream_options=options).upstream_body("a.b"))

    assert body == {"model": "a.b", "stream": True, "n": 2, "stream_options": sent}


@pytest.mark.parametrize(
    ("options", "wants"),
    [(None, False), ({"include_usage": True}, True), ({"include_usage": False}, False), (3, False), ({}, False)],
)
def test_usage_is_wanted_when_it_is_asked_for(options: Any, wants: bool) -> None:
    assert parsed(stream_options=options).wants_usage is wants


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_a_body_is_bounded_as_announced_and_as_it_comes() -> None:
    assert await read_body(chunks(b"ab", b"cd"), None, 4) == b"abcd"
    for parts, length in ((chunks(b"ab", b"cde"), None), (chunks(), "5"), (chunks(b"abcde"), "4")):
        with pytest.raises(ApiError) as raised:
            await read_body(parts, length, 4)
        assert raised.value.status == 413
