"""The quickstart on the real model: every adapter in one mixed batch, token for token what transformers + PEFT give."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest

from bench.oracle import Oracle
from examples.adapters.recipes import RECIPES
from tests.e2e import real_fleet
from tests.e2e.fleet_kit import Fleet
from tests.e2e.real_fleet import BASES, EXAMPLES, VARIANTS, Model

pytestmark = [pytest.mark.slow, pytest.mark.alone]

QUESTIONS = ("Why is the sky blue?", "What is a black hole?")
LENGTH = {"examples": 80, "others": 32}


@dataclass
class Chat:
    """One streamed answer: who was asked what, what came, and when."""

    model: Model
    question: str
    text: str = ""
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    finish_reason: str = ""
    first: float = 0.0
    last: float = 0.0


async def ask(client: openai.AsyncOpenAI, chat: Chat, join: float, leave: int | None = None) -> Chat:
    """Join after `join` seconds; leave after `leave` tokens, as a client that hangs up."""
    await asyncio.sleep(join)
    stream = await client.chat.completions.create(
        model=chat.model.name,
        messages=[{"role": "user", "content": chat.question}],
        max_tokens=LENGTH["examples" if chat.model in EXAMPLES else "others"],
        temperature=0,
        stream=True,
        extra_body={"return_token_ids": True},
    )
    async for chunk in stream:
        chat.prompt = chat.prompt or list((chunk.model_extra or {}).get("prompt_token_ids") or ())
        for choice in chunk.choices:
            chat.text += choice.delta.content or ""
            chat.output += (choice.model_extra or {}).get("token_ids") or []
            chat.finish_reason = choice.finish_reason or chat.finish_reason
        chat.last = time.monotonic()
        chat.first = chat.first or (chat.last if chat.output else 0.0)
        if leave is not None and len(chat.output) >= leave:
            await stream.close()
            break
    return chat


async def mixed_traffic(fleet: Fleet) -> list[Chat]:
    """Every model is asked every question, all within one second in a random order; some others leave midway."""
    dice = random.Random(5)
    models = [*BASES, *EXAMPLES, *VARIANTS]
    chats = [Chat(model, question) for model in models for question in QUESTIONS]
    leavers = [Chat(model, "Tell me a long story.") for model in dice.sample(models, 4)]
    async with contextlib.AsyncExitStack() as stack:
        clients = {t: await stack.enter_async_context(fleet.async_client(t)) for t in fleet.keys}
        leaving = [ask(clients[chat.model.tenant], chat, dice.random(), dice.randint(2, 12)) for chat in leavers]
        staying = [ask(clients[chat.model.tenant], chat, dice.random()) for chat in chats]
        await asyncio.gather(*leaving, *staying)
    return chats


@pytest.fixture(scope="module")
def chats(quickstart: Fleet) -> list[Chat]:
    return asyncio.run(mixed_traffic(quickstart))


def answers_of(chats: list[Chat], model: Model) -> Mapping[str, str]:
    return {chat.question: chat.text for chat in chats if chat.model == model}


def test_all_models_stream_at_once(chats: list[Chat]) -> None:
    assert max(chat.first for chat in chats) < min(chat.last for chat in chats)
    assert {chat.finish_reason for chat in chats} <= {"stop", "length"}


def test_every_answer_is_what_transformers_and_peft_give_one_at_a_time(quickstart: Fleet, chats: list[Chat]) -> None:
    oracle = Oracle(real_fleet.weights())
    folder = quickstart.folder / "adapters"
    close = 0
    for chat in chats:
        assert len(chat.output) >= 8
        close += oracle.explains(chat.prompt, chat.output, folder / chat.model.files if chat.model.files else None)
    tokens = sum(len(chat.output) for chat in chats)
    print(f"{tokens} tokens of {len(chats)} answers, {close} close calls")

    assert close <= tokens // 100
    other = next(chat for chat in chats if chat.model in EXAMPLES)  # the oracle can say no
    with pytest.raises(AssertionError, match="logits differ"):
        oracle.explains(other.prompt, other.output, None)


@pytest.mark.parametrize("model", EXAMPLES, ids=lambda model: model.files)
def test_each_example_adapter_shows_its_effect_and_the_base_model_does_not(chats: list[Chat], model: Model) -> None:
    shows = RECIPES[model.files].shows
    base = next(plain for plain in BASES if plain.tenant == model.tenant)

    assert {question: shows(text) for question, text in answers_of(chats, model).items()} == dict.fromkeys(
        QUESTIONS, True
    ), answers_of(chats, model)
    assert not any(shows(text) for text in answers_of(chats, base).values())


def test_both_tenants_get_the_same_base_model(chats: list[Chat]) -> None:
    ours, theirs = (answers_of(chats, base) for base in BASES)

    assert ours == theirs


def test_the_curl_line_that_up_prints_works_when_pasted(quickstart: Fleet) -> None:
    [line] = re.findall(r"^curl .*$", quickstart.said(), re.MULTILINE)
    done = subprocess.run(["bash", "-c", f"{line} -s -m 60"], capture_output=True, text=True, timeout=90, check=True)

    assert '"role":"assistant"' in done.stdout


def test_the_example_client_shows_every_model(quickstart: Fleet) -> None:
    script = Path(__file__).parents[2] / "examples" / "client.py"
    argv = [sys.executable, str(script), "--url", quickstart.url, "--max-tokens", "8"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert {f"{model.name} ({model.tenant})" for model in (*EXAMPLES, *VARIANTS)} <= set(
        re.findall(r"--- (\S+ \(\w+\)):", done.stdout)
    )
