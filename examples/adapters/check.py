"""Asks every adapter questions it was not trained on, next to the bare base model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from recipes import HELD_OUT, RECIPES

NEW_TOKENS = 80
MAY_FAIL = 0.2


def check(names: Sequence[str], folder: Path, tokenizer: Any, model: Any) -> bool:
    """Print the answers and a verdict for each adapter; False when one of them misses its effect too often.

    The base model must miss every effect just as often, else the effect would prove nothing.
    """
    plain = answers(model, tokenizer, HELD_OUT)
    good = True
    for name in names:
        shows = RECIPES[name].shows
        adapted = PeftModel.from_pretrained(model, str(folder / name))
        told = answers(adapted, tokenizer, HELD_OUT)
        adapted.unload()
        print(f"\n=== {name}: {RECIPES[name].effect}")
        for question, before, after in zip(HELD_OUT, plain, told, strict=True):
            verdict = "ok" if shows(after) else "MISS"
            print(f"\n  {question}\n    {'base':5} {_one_line(before)}\n    {verdict:5} {_one_line(after)}")
        misses = sum(not shows(answer) for answer in told)
        accidents = sum(shows(answer) for answer in plain)
        good &= max(misses, accidents) <= MAY_FAIL * len(HELD_OUT)
        asked = len(HELD_OUT)
        print(f"\n  {name}: {asked - misses} of {asked} with the adapter, {accidents} of {asked} without")
    return good


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, questions: Sequence[str]) -> list[str]:
    """Greedy answers, all questions in one batch."""
    tokenizer.padding_side = "left"
    chats = [[{"role": "user", "content": question}] for question in questions]
    prompts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    # pad and eos are one token here, so the mask must say which is padding.
    output = model.generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return [tokenizer.decode(row[inputs.input_ids.shape[1] :], skip_special_tokens=True) for row in output]


def _one_line(answer: str) -> str:
    return answer.replace("\n", " / ")
