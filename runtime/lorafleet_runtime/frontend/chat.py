"""Renders a conversation with the model's own chat template. Knows no HTTP and no token ids."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lorafleet_runtime.errors import ConfigError, invalid


class ChatTemplate:
    """A compiled template, in the environment they are written for (transformers' `apply_chat_template`).

    `source` None stands for a model without a template; rendering then answers 400.
    """

    def __init__(self, source: str | None, special_tokens: dict[str, str] | None = None) -> None:
        self._special_tokens = special_tokens or {}
        self._template: jinja2.Template | None = None
        if source is not None:
            try:
                self._template = _environment().from_string(source)
            except jinja2.TemplateSyntaxError as error:
                raise ConfigError(f"--model: its chat template does not compile: {error}") from None

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: dict[str, Any] | None = None,
    ) -> str:
        """The prompt's text. Raises ApiError 400 with param `messages` for what the template refuses."""
        if self._template is None:
            message = "this model has no chat template; send a plain prompt to /v1/completions"
            raise invalid(message, "messages", "no_chat_template")
        try:
            text = self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt and not continue_final_message,
                **(self._special_tokens | (extra or {})),
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise invalid(f"the model's chat template refuses these messages: {error}", "messages") from None
        return _cut_after(text, str(messages[-1]["content"])) if continue_final_message else text


def pick_template(templates: str | list[dict[str, str]] | None) -> str | None:
    """A tokenizer's config holds one template, or several by name, of which `default` is for plain chat."""
    if isinstance(templates, list):
        return {entry["name"]: entry["template"] for entry in templates}.get("default")
    return templates


def _cut_after(text: str, content: str) -> str:
    at = text.rfind(content.strip())
    if at < 0:
        message = "the chat template rewrites the last message, so it cannot be continued"
        raise invalid(message, "continue_final_message")
    return text[: at + len(content.strip())]


class _Generation(Extension):
    """`{% generation %}` marks the assistant's spans for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as a plain class attribute)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
