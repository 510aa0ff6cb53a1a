"""What is drawn on the card is what the plain operations draw, for everything that requests can ask for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafleet_kernels.gpu.operations import TritonOperations
from lorafleet_runtime.engine.constrained.masks import Masks
from lorafleet_runtime.engine.gpu.drawing import GpuTokens
from lorafleet_runtime.engine.sampling.choosing import choose
from lorafleet_runtime.engine.sampling.sampler import Row, tokens_of
from lorafleet_runtime.protocol import Sampling

pytestmark = pytest.mark.interpreted

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCABULARY = 3000
ASKED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.6, "top_k": 12},
    {"temperature": 1.4, "top_p": 0.8, "logprobs": 3},
    {"temperature": 0.9, "top_p": 0.5, "min_p": 0.02, "top_k": 100},
    {"temperature": 0.0, "logprobs": 2},
    {"temperature": 0.7, "presence_penalty": 0.5, "logit_bias": {3: 5.0}},
]


def rows() -> list[Row]:
    return [Row(Sampling(max_tokens=9, seed=i, **what), i, [1, 2], [3, 4]) for i, what in enumerate(ASKED)]


@pytest.mark.parametrize("chosen", [range(7), [1], [0, 5], [2, 3, 4], [0, 1, 0, 6]])
def test_every_row_gets_its_token_whoever_is_beside_it(chosen: list[int]) -> None:
    ops = TritonOperations(torch.float32, DEVICE)
    logits = torch.randn(len(chosen), VOCABULARY, generator=torch.Generator().manual_seed(5)).mul(2).to(DEVICE)
    asked = [rows()[i] for i in chosen]

    plain = choose(logits, asked, Masks(), ops, tokens_of).sent()()
    on_card = choose(logits, asked, Masks(), ops, GpuTokens(ops)).sent()()

    assert [s.token_id for s in on_card] == [s.token_id for s in plain]
    assert [s.top for s in on_card] == [s.top for s in plain]
    assert all(s.token_id >= 0 for s in plain)


def test_more_rows_than_were_ever_drawn_at_once_are_drawn_too() -> None:
    ops = TritonOperations(torch.float32, DEVICE)
    draw = GpuTokens(ops)
    for count in (3, 150):
        logits = torch.randn(count, 500, generator=torch.Generator().manual_seed(count)).to(DEVICE)
        asked = [Row(Sampling(max_tokens=9, temperature=1.0, seed=i, top_p=0.9), i, [], []) for i in range(count)]
        assert draw(logits, asked).tolist() == tokens_of(logits, asked).tolist()


def test_a_row_of_nothing_finite_has_no_token() -> None:
    logits = torch.full((2, 500), -torch.inf, device=DEVICE)
    logits[1, 7] = 1.0
    asked = [Row(Sampling(max_tokens=9, temperature=1.0, top_k=4), 0, [], [])] * 2
    assert GpuTokens(TritonOperations(torch.float32, DEVICE))(logits, asked).tolist() == [-1, 7]
