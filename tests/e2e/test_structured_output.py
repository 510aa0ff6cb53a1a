"""Answers of a given form, as clients of the openai package ask for them: the real model; a fleet whose parts die."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Literal

import httpx
import jsonschema
import openai
import pytest
from openai.types.shared_params import ResponseFormatJSONSchema
from pydantic import BaseModel, ConfigDict, Field

from tests.e2e.fleet_kit import Fleet
from tests.e2e.real_fleet import BASES, EXAMPLES, Model

pytestmark = [pytest.mark.slow, pytest.mark.alone]


class Animal(BaseModel):
    """A schema as users write it, for the openai package's own `parse`."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=30)
    legs: int = Field(ge=0, le=100)
    diet: Literal["plants", "meat", "both"]


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "capital": {"type": "string", "maxLength": 30},
        "population_millions": {"type": "number", "minimum": 0, "maximum": 2000},
        "neighbours": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
    },
    "required": ["capital", "population_millions", "neighbours"],
    "additionalProperties": False,
}
FORM: ResponseFormatJSONSchema = {
    "type": "json_schema", "json_schema": {"name": "country", "schema": SCHEMA, "strict": True}
}  # fmt: skip


async def about_france(fleet: Fleet, model: Model, temperature: float) -> str:
    async with fleet.async_client(model.tenant) as client:
        answer = await client.chat.completions.create(
            model=model.name,
            messages=[{"role": "user", "content": "Tell me about France."}],
            response_format=FORM,
            temperature=temperature,
            seed=7,
            max_tokens=200,
        )
    assert answer.choices[0].finish_reason == "stop", answer
    return answer.choices[0].message.content or ""


async def free_answer(fleet: Fleet) -> str:
    async with fleet.async_client(BASES[0].tenant) as client:
        messages: Any = [{"role": "user", "content": "Why is the sky blue?"}]
        answer = await client.chat.completions.create(
            model=BASES[0].name, messages=messages, temperature=0, max_tokens=40
        )
    return answer.choices[0].message.content or ""


async def test_the_base_and_every_adapter_obey_a_schema_at_once_beside_free_answers(quickstart: Fleet) -> None:
    alone = await free_answer(quickstart)
    asked = [(model, temperature) for model in (*BASES, *EXAMPLES) for temperature in (0.0, 1.0)]
    free, *answers = await asyncio.gather(free_answer(quickstart), *(about_france(quickstart, *who) for who in asked))

    for text in answers:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(answers)) > len(BASES)
    assert free == alone


def test_the_openai_package_parses_into_a_class(quickstart: Fleet) -> None:
    with quickstart.client("acme") as client:
        answer = client.chat.completions.parse(
            model=BASES[0].name,
            messages=[{"role": "user", "content": "Describe a cat."}],
            response_format=Animal,
            temperature=0,
            max_tokens=120,
        )

    assert answer.choices[0].message.parsed is not None
    assert answer.choices[0].message.parsed.diet in ("plants", "meat", "both")


def test_regexes_and_choices_in_a_stream_and_in_several_choices(quickstart: Fleet) -> None:
    with quickstart.client("acme") as client:
        stream = client.completions.create(
            model=BASES[0].name, prompt="The phone number is", max_tokens=40, stream=True, temperature=0.7,
            extra_body={"guided_regex": r" \+\d{2} \d{3} \d{4}\."},
        )  # fmt: skip
        streamed = "".join(choice.text for chunk in stream for choice in chunk.choices)
        several = client.chat.completions.create(
            model=BASES[0].name, messages=[{"role": "user", "content": "Is the sky blue?"}], n=3, max_tokens=20,
            extra_body={"structured_outputs": {"choice": ["yes", "no", "perhaps, who knows"]}},
        )  # fmt: skip

    assert re.fullmatch(r" \+\d{2} \d{3} \d{4}\.", streamed)
    assert {choice.message.content for choice in several.choices} <= {"yes", "no", "perhaps, who knows"}


@pytest.mark.parametrize("stream", [True, False])
def test_a_schema_that_cannot_be_obeyed_is_a_400_that_names_the_field(tiny: Fleet, stream: bool) -> None:
    bad: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {"type": "string"}}}}
    with tiny.client("acme") as client, pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], response_format=bad, stream=stream
        )

    assert error.value.param == "response_format.json_schema.schema"
    assert error.value.code == "invalid_constraint"
    assert "not" in str(error.value)


def test_a_killed_engine_breaks_no_stream_that_has_a_form(tiny: Fleet) -> None:
    """The gateway asks again with the tokens so far, and the constraint is taken up where it was."""
    body = {
        "model": "helper", "prompt": "Once upon a time", "max_tokens": 400, "seed": 5, "stream": True,
        "guided_json": {"type": "array", "items": {"enum": ["one", "two", None]}, "minItems": 60, "maxItems": 60},
    }  # fmt: skip
    texts = []
    with tiny.http("acme") as http:
        for killed in (False, True):
            texts.append(_text(http, body, tiny if killed else None))

    assert texts[0] == texts[1]
    assert len(json.loads(texts[1])) == 60


def _text(http: httpx.Client, body: dict[str, Any], killed: Fleet | None) -> str:
    """What a stream says; the engine of `killed` ends after some of it."""
    text = ""
    with http.stream("POST", "/v1/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                text += "".join(choice["text"] for choice in json.loads(line[6:]).get("choices", ()))
            if killed is not None and len(text) > 60:
                killed.engine.kill()
                killed = None
    assert killed is None
    return text
