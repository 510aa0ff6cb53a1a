"""Chats into training batches: what is learnt from, and how eight chats share one forward pass.

Every chat starts with the same tokens (the template's system message), and chats differ in length. A padded batch
would compute that start eight times, and padding on top. Here a batch is one row, `[start, chat 1, chat 2, ...]`,
and a mask lets each chat see the start and itself only. The gradients are those of the padded batch, in half the time.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Chat:
    """One example: its tokens, of which those from `answer` on are the assistant's."""

    tokens: list[int]
    answer: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One packed row. `predictors` are the positions whose next token is an answer's token, `targets` those tokens."""

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    predictors: Tensor
    targets: Tensor


def read_chats(path: Path, tokenizer: Any) -> list[Chat]:
    """Tokenise a file of `{"messages": [...]}` lines whose last message is the assistant's."""
    lines = path.read_text(encoding="utf-8").splitlines()
    chats = [_chat(json.loads(line)["messages"], tokenizer) for line in lines if line.strip()]
    for number, chat in enumerate(chats, start=1):
        if len(chat.tokens) > MAX_TOKENS:
            raise SystemExit(f"{path.name}: example {number} has {len(chat.tokens)} tokens, above {MAX_TOKENS}")
    return chats


def _chat(messages: list[dict[str, str]], tokenizer: Any) -> Chat:
    prompt: str = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    before: list[int] = tokenizer(prompt, add_special_tokens=False).input_ids
    # The end-of-turn token belongs to the answer: an adapter that never saw it would never stop.
    answer = messages[-1]["content"] + tokenizer.eos_token
    return Chat(before + tokenizer(answer, add_special_tokens=False).input_ids, len(before))


def batches(chats: Sequence[Chat], size: int, steps: int, seed: int) -> Iterator[Batch]:
    """`steps` batches, going through the shuffled chats again and again."""
    dice = random.Random(seed)
    waiting: list[Chat] = []
    for _ in range(steps):
        while len(waiting) < size:
            waiting += dice.sample(list(chats), len(chats))
        yield pack(waiting[:size])
        del waiting[:size]


def _common_start(prompts: Sequence[list[int]]) -> int:
    """How many tokens all of the prompts share, from the first one on."""
    length = 0
    while all(length < len(prompt) and prompt[length] == prompts[0][length] for prompt in prompts):
        length += 1
    return length


def pack(chats: Sequence[Chat]) -> Batch:
    """Lay chats behind their common start."""
    start = _common_start([chat.tokens[: chat.answer] for chat in chats])
    tokens = chats[0].tokens[:start]
    positions = list(range(start))
    owner = [-1] * start
    predictors: list[int] = []
    targets: list[int] = []
    for index, chat in enumerate(chats):
        offset = len(tokens) - start
        # The last token predicts nothing, so it is left out of the row.
        tokens += chat.tokens[start:-1]
        positions += range(start, len(chat.tokens) - 1)
        owner += [index] * (len(chat.tokens) - 1 - start)
        predictors += range(offset + chat.answer - 1, offset + len(chat.tokens) - 1)
        targets += chat.tokens[chat.answer :]
    owners = torch.tensor(owner)
    visible = (owners[None, :] == -1) | (owners[None, :] == owners[:, None])
    return Batch(
        tokens=torch.tensor([tokens]),
        positions=torch.tensor([positions]),
        mask=torch.tril(visible)[None, None],
        predictors=torch.tensor(predictors),
        targets=torch.tensor(targets),
    )
