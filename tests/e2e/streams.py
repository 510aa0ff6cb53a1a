"""Streams as clients see them: text, token ids and how they ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import openai
from openai.types import Completion

LONG: dict[str, Any] = {
    "max_tokens": 400,
    "temperature": 0,
    "extra_body": {"ignore_eos": True, "return_token_ids": True},
}
"""An answer long enough to be interrupted, the same every time."""


@dataclass
class Answer:
    """One finished stream."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    prompt_token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    ids: set[str] = field(default_factory=set)


def take(answer: Answer, chunk: Completion) -> None:
    """Add one chunk of `POST /v1/completions`."""
    answer.ids.add(chunk.id)
    answer.prompt_token_ids = answer.prompt_token_ids or list((chunk.model_extra or {}).get("prompt_token_ids") or ())
    for choice in chunk.choices:
        answer.text += choice.text
        answer.token_ids += (choice.model_extra or {}).get("token_ids") or []
        answer.finish_reason = choice.finish_reason or answer.finish_reason


def complete(client: openai.OpenAI, model: str, prompt: str) -> Answer:
    """One completion, streamed to its end."""
    answer = Answer()
    for chunk in client.completions.create(model=model, prompt=prompt, stream=True, **LONG):
        take(answer, chunk)
    return answer


async def complete_async(client: openai.AsyncOpenAI, model: str, prompt: str) -> Answer:
    """As `complete`, among others at once."""
    answer = Answer()
    async for chunk in await client.completions.create(model=model, prompt=prompt, stream=True, **LONG):
        take(answer, chunk)
    return answer


def complete_after(client: openai.OpenAI, model: str, prompt: str, strike: Callable[[], object]) -> Answer:
    """One completion; `strike` is called once the stream has brought a few tokens."""
    answer = Answer()
    struck = False
    for chunk in client.completions.create(model=model, prompt=prompt, stream=True, **LONG):
        take(answer, chunk)
        if not struck and len(answer.token_ids) >= 8:
            struck = True
            strike()
    return answer


class Traffic:
    """Short requests in a row, from a thread, while a block runs; every answer and every error is kept."""

    def __init__(self, client: openai.OpenAI, model: str) -> None:
        self.answers = 0
        self.errors: list[Exception] = []
        self._client = client
        self._model = model
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._over.wait(0.02):
            try:
                self._client.completions.create(model=self._model, prompt="traffic", max_tokens=4)
                self.answers += 1
            except openai.APIError as error:
                self.errors.append(error)
