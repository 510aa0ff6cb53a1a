from __future__ import annotations

import json
from typing import Any

import pytest

from lorafleet_runtime.errors import ApiError
from lorafleet_runtime.frontend.schemas import ChatRequest, CompletionRequest, parse

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "hi"}


def chat(**changes: Any) -> ChatRequest:
    return parse(ChatRequest, json.dumps(CHAT | changes).encode())


def text(**changes: Any) -> CompletionRequest:
    return parse(CompletionRequest, json.dumps(TEXT | changes).encode())


def refusal(kind: Any, **changes: Any) -> ApiError:
    with pytest.raises(ApiError) as error:
        kind(**changes)
    assert error.value.status == 400
    return error.value


BOUNDS: list[tuple[str, Any]] = [
    ("temperature", -0.1),
    ("temperature", 2.1),
    ("temperature", "hot"),
    ("top_p", 0),
    ("top_p", 1.5),
    ("n", 0),
    ("n", 17),
    ("max_tokens", 0),
    ("max_tokens", -5),
    ("presence_penalty", 3),
    ("frequency_penalty", -3),
    ("repetition_penalty", 0),
    ("min_p", 2),
    ("top_k", -2),
    ("min_tokens", -1),
    ("seed", 2**64),
    ("stop", ["x"] * 17),
    ("stop", ""),
    ("stop_token_ids", [-1]),
    ("stream", "perhaps"),
]


@pytest.mark.parametrize(("param", "value"), BOUNDS)
@pytest.mark.parametrize("kind", [chat, text])
def test_values_out_of_bounds_are_refused_by_name(kind: Any, param: str, value: Any) -> None:
    error = refusal(kind, **{param: value})

    assert error.param is not None
    assert error.param.split("[")[0] == param
    assert param in error.message


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("max_completion_tokens", 0),
        ("top_logprobs", 21),
        ("messages", []),
        ("logit_bias", {"7": 101}),
        ("logit_bias", {"seven": 1}),
    ],
)
def test_chat_has_bounds_of_its_own(param: str, value: Any) -> None:
    assert str(refusal(chat, **{param: value}).param).startswith(param)


@pytest.mark.parametrize(("param", "value"), [("logprobs", 21), ("prompt", 5), ("prompt", [[-1]])])
def test_completions_have_bounds_of_their_own(param: str, value: Any) -> None:
    assert str(refusal(text, **{param: value}).param).startswith(param)


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("modalities", ["text", "audio"]),
        ("store", True),
        ("audio", {"voice": "alloy"}),
        ("reasoning_effort", "high"),
        ("echo", True),
        ("suffix", "end"),
        ("best_of", 2),
    ],
)
def test_what_is_not_implemented_is_refused_and_not_ignored(param: str, value: Any) -> None:
    error = refusal(chat, **{param: value})

    assert (error.param, error.code) == (param, "unsupported")
    assert "not supported" in error.message


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "store": False},
        {"user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "parallel_tool_calls": True},
        {"tools": None, "stop": None, "temperature": None, "seed": None, "logit_bias": None, "stream_options": None},
        {"service_tier": "auto", "modalities": ["text"], "verbosity": "medium", "reasoning_effort": "none"},
    ],
)
def test_what_changes_nothing_is_accepted(fields: dict[str, Any]) -> None:
    request = chat(**fields)

    assert (request.temperature, request.stop_strings) == (1.0, [])


def test_a_misspelt_field_is_an_error() -> None:
    error = refusal(chat, temprature=0.5)

    assert (error.param, error.code) == ("temprature", "unknown_parameter")


@pytest.mark.parametrize(
    ("body", "code"), [(b"{", "invalid_json"), (b"\xff\xfe", "invalid_json"), (b"", "invalid_json")]
)
def test_malformed_json_is_a_400(body: bytes, code: str) -> None:
    with pytest.raises(ApiError) as error:
        parse(ChatRequest, body)

    assert (error.value.status, error.value.code) == (400, code)


@pytest.mark.parametrize("body", [b"[]", b"7", b"null"])
def test_json_that_is_no_object_is_a_400(body: bytes) -> None:
    with pytest.raises(ApiError) as error:
        parse(ChatRequest, body)

    assert error.value.status == 400


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ApiError, match="messages is required") as error:
        parse(ChatRequest, b'{"model": "m"}')

    assert (error.value.param, error.value.code) == ("messages", "missing_required_parameter")


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompts_come_in_four_shapes(prompt: Any, prompts: list[Any]) -> None:
    assert text(prompt=prompt).prompts == prompts


def test_content_in_parts_is_one_text() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    request = chat(messages=[{"role": "developer", "content": parts}])

    assert request.messages[0].plain(0) == {"role": "system", "content": "one two"}


def test_an_image_is_refused_by_its_place() -> None:
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "data:"}}]

    with pytest.raises(ApiError, match="text only") as error:
        chat(messages=[{"role": "user", "content": parts}]).messages[0].plain(0)
    assert error.value.param == "messages[0].content[1].type"


@pytest.mark.parametrize(
    "message", [{"role": "tool", "content": "4"}, {"role": "assistant", "tool_calls": [{"id": "1"}]}]
)
def test_tool_messages_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="tool calls") as error:
        chat(messages=[message]).messages[0].plain(0)
    assert error.value.param == "messages[0].role"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_everything": True}}, "stream_options.include_everything"),
        ({"n": 2, "resume": {"output_token_ids": [1]}}, "resume"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"continue_final_message": True}, "continue_final_message"),
    ],
)
def test_fields_that_do_not_go_together(changes: dict[str, Any], param: str) -> None:
    assert refusal(chat, **changes).param == param
