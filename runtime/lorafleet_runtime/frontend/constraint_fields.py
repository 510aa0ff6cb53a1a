"""The fields by which clients ask for output of a given form: OpenAI's `response_format`, vLLM's two generations.

Knows no tokens and no engine; whether a schema or a regex can be obeyed is found out where it is compiled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lorafleet_runtime.constraints.bounds import reason_too_large
from lorafleet_runtime.constraints.constraint import Constraint, Kind
from lorafleet_runtime.errors import invalid

_ANY_OBJECT: dict[str, Any] = {"type": "object"}
Schema = str | dict[str, Any]
Choices = Annotated[list[str], Field(min_length=1)]


class JsonSchema(BaseModel):
    """`strict` or not, the output obeys the schema; one that cannot be obeyed is refused."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            message = f"type {self.type!r} needs " + ("json_schema" if self.type == "json_schema" else "no json_schema")
            raise invalid(message, "response_format.json_schema")
        return self


class StructuredOutputs(BaseModel):
    model_config = ConfigDict(extra="forbid")
    json_text: Schema | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A constraint, and the field that asks for it, for the client's eyes."""

    constraint: Constraint
    param: str


class ConstraintFields(BaseModel):
    """At most one of these asks for something."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None

    @cached_property
    def constraint(self) -> Asked | None:
        """What the output must be; None for free text. Raises ApiError 400 when it is too large or no JSON."""
        given = self._given()
        if len(given) > 1:
            first, second = given[0][0], given[1][0]
            raise invalid(f"{first} and {second} do not go together; give one of them", second)
        if not given:
            return None
        param, kind, value = given[0]
        text = value if isinstance(value, str) and kind != "choice" else json.dumps(value, ensure_ascii=False)
        constraint = Constraint(kind, _checked_schema(text, param) if kind == "json" else text)
        if (reason := reason_too_large(constraint)) is not None:
            raise invalid(f"{param} {reason}", param)
        return Asked(constraint, param)

    def _given(self) -> list[tuple[str, Kind, Any]]:
        form, outputs = self.response_format, self.structured_outputs or StructuredOutputs.model_validate({})
        schema = form.json_schema.json_schema if form is not None and form.json_schema is not None else None
        fields: list[tuple[str, Kind, Any]] = [
            ("response_format", "json", _ANY_OBJECT if form is not None and form.type == "json_object" else None),
            ("response_format.json_schema.schema", "json", schema),
            ("structured_outputs.json", "json", outputs.json_text),
            ("structured_outputs.json_object", "json", _ANY_OBJECT if outputs.json_object else None),
            ("structured_outputs.regex", "regex", outputs.regex),
            ("structured_outputs.choice", "choice", outputs.choice),
            ("structured_outputs.grammar", "grammar", outputs.grammar),
            ("guided_json", "json", self.guided_json),
            ("guided_regex", "regex", self.guided_regex),
            ("guided_choice", "choice", self.guided_choice),
            ("guided_grammar", "grammar", self.guided_grammar),
        ]
        return [(param, kind, value) for param, kind, value in fields if value is not None]


def _checked_schema(text: str, param: str) -> str:
    """The schema's text, once more, so that what is equal is written equally."""
    try:
        schema = json.loads(text)
        if not isinstance(schema, dict):
            raise invalid(f"{param} must be a JSON object", param)
        return json.dumps(schema, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise invalid(f"{param} is not a JSON object: {error}", param) from None
