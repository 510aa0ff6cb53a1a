"""What clients may ask of the output's form, in OpenAI's words and in vLLM's, and what they are told otherwise."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from lorafleet_runtime.constraints.constraint import Constraint
from lorafleet_runtime.errors import ApiError
from lorafleet_runtime.frontend.constraint_fields import Asked
from lorafleet_runtime.frontend.schemas import ChatRequest, CompletionRequest, parse
from lorafleet_runtime.frontend.scripted_engine import ScriptedEngine
from lorafleet_runtime.frontend.tokenizer import ModelTokenizer

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "hi"}
SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"const": "é"}}}
WRITTEN = '{"type":"object","properties":{"z":{"type":"integer"},"a":{"const":"é"}}}'
OBJECT = Constraint("json", '{"type":"object"}')


def asked(**fields: Any) -> list[Asked | None]:
    """By both routes."""
    kinds = ((ChatRequest, CHAT), (CompletionRequest, TEXT))
    return [parse(kind, json.dumps(body | fields).encode()).constraint for kind, body in kinds]


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as error:
        asked(**fields)
    assert error.value.status == 400
    return error.value


def form(**fields: Any) -> dict[str, Any]:
    """A `response_format` with a schema."""
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, **fields}}


@pytest.mark.parametrize(
    ("fields", "param", "constraint"),
    [
        ({"response_format": form()}, "response_format.json_schema.schema", Constraint("json", WRITTEN)),
        ({"response_format": form(strict=True, description="d")}, "response_format.json_schema.schema",
         Constraint("json", WRITTEN)),
        ({"response_format": {"type": "json_object"}}, "response_format", OBJECT),
        ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json", Constraint("json", WRITTEN)),
        ({"structured_outputs": {"json": json.dumps(SCHEMA), "regex": None}}, "structured_outputs.json",
         Constraint("json", WRITTEN)),
        ({"structured_outputs": {"json_object": True}}, "structured_outputs.json_object", OBJECT),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs.regex", Constraint("regex", "a+")),
        ({"structured_outputs": {"choice": ["a", "é"]}}, "structured_outputs.choice",
         Constraint("choice", '["a", "é"]')),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, "structured_outputs.grammar",
         Constraint("grammar", 'start: "a"')),
        ({"guided_json": SCHEMA}, "guided_json", Constraint("json", WRITTEN)),
        ({"guided_regex": "a+"}, "guided_regex", Constraint("regex", "a+")),
        ({"guided_choice": ["a"]}, "guided_choice", Constraint("choice", '["a"]')),
        ({"guided_grammar": 'start: "a"'}, "guided_grammar", Constraint("grammar", 'start: "a"')),
    ],
    ids=lambda value: f"{value}"[:50],
)  # fmt: skip
def test_each_field_becomes_a_constraint_on_both_routes(
    fields: dict[str, Any], param: str, constraint: Constraint
) -> None:
    assert asked(**fields) == [Asked(constraint, param)] * 2


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": None, "guided_json": None},
        {"structured_outputs": {}},
        {"structured_outputs": {"json_object": False, "regex": None}},
    ],
)
def test_what_asks_for_nothing_is_no_constraint(fields: dict[str, Any]) -> None:
    assert asked(**fields) == [None, None]


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "'text', 'json_object' or 'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "needs json_schema"),
        ({"response_format": form() | {"type": "json_object"}}, "response_format.json_schema", "needs no json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema", "is required"),
        ({"response_format": form(schema=[1])}, "response_format.json_schema.schema", "object"),
        ({"response_format": form(name="")}, "response_format.json_schema.name", "at least 1"),
        ({"response_format": form(stricter=True)}, "response_format.json_schema.stricter", "not permitted"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "not permitted"),
        ({"structured_outputs": {"regex": 7}}, "structured_outputs.regex", "string"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least 1"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice", "do not go together"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex", "do not go together"),
        ({"guided_json": "{1"}, "guided_json", "is not a JSON object: "),
        ({"guided_json": "[1]"}, "guided_json", "must be a JSON object"),
        ({"guided_json": '{"const": NaN}'}, "guided_json", "is not a JSON object: "),
        ({"guided_json": {"const": "x" * 65536}}, "guided_json", "at most 65536"),
        ({"guided_regex": "(a{1000}){1000}"}, "guided_regex", "1000000 parts"),
        ({"guided_choice": ["x"] * 1025}, "guided_choice", "1025 choices"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "guided_regex"),
        ({"guided_regex": "a", "min_tokens": 2}, "min_tokens", "guided_regex"),
        ({"guided_decoding_backend": "outlines"}, "guided_decoding_backend", "unrecognised"),
    ],
    ids=lambda value: f"{value}"[:50],
)  # fmt: skip
def test_what_does_not_work_is_refused_by_its_name(fields: dict[str, Any], param: str, reason: str) -> None:
    error = refusal(**fields)

    assert error.param == param
    assert reason in error.message


async def test_every_choice_of_a_request_has_the_constraint_and_is_counted(
    http: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    await http.post("/v1/chat/completions", json=CHAT | {"n": 2, "response_format": form()})
    await http.post("/v1/completions", json=TEXT | {"guided_choice": ["a"]})
    await http.post("/v1/completions", json=TEXT)
    found = [request.sampling.constraint for request in engine.requests]
    counted = (await http.get("/metrics")).text

    assert found == [Constraint("json", WRITTEN)] * 2 + [Constraint("choice", '["a"]'), None]
    assert 'lorafleet_constrained_requests_total{kind="json",model_name="tiny"} 2.0' in counted
    assert 'lorafleet_constrained_requests_total{kind="choice",model_name="tiny"} 1.0' in counted


def test_the_vocabulary_tells_what_each_token_adds_and_which_ones_end_a_text(tokenizer: ModelTokenizer) -> None:
    vocabulary = tokenizer.vocabulary

    assert vocabulary.tokens == [*(bytes([byte]) for byte in range(256)), *[b""] * 8]
    assert vocabulary.ends == tokenizer.eos_token_ids
    assert vocabulary.ends
