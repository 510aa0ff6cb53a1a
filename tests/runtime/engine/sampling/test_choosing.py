"""Rows of one step, each by the way that is cheapest for it, and all as the plain sampler chooses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lorafleet_kernels.dispatch import operations
from lorafleet_kernels.operations import Operations
from lorafleet_runtime.constraints.constraint import Constraint
from lorafleet_runtime.engine.constrained.masks import Masks
from lorafleet_runtime.engine.sampling.choosing import choose
from lorafleet_runtime.engine.sampling.sampler import Row, sample
from lorafleet_runtime.protocol import Sampling

VOCABULARY = 1000
CPU = torch.device("cpu")
DIGITS = Constraint("regex", "[0-9]+")
ASKED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "constraint": DIGITS},
    {"temperature": 0.0, "constraint": DIGITS, "logprobs": 2},
    {"temperature": 0.8, "constraint": DIGITS, "top_p": 0.7},
    {"temperature": 0.0, "constraint": DIGITS, "logit_bias": {7: 9.0}},
    {"temperature": 1.2},
    {"temperature": 0.0, "constraint": DIGITS},
]


class Unmasked(Operations):
    """As a device whose argmax takes no masks."""

    @property
    def argmax_obeys(self) -> bool:
        return False

    def argmax(self, logits: Tensor, allowed: Any = ()) -> Tensor:
        assert not allowed
        return super().argmax(logits)


def one_thread() -> int:
    return 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chosen", [range(7), [1], [0, 1, 6], [1, 6], [2, 3, 4], [0, 5]])
def test_a_mask_is_obeyed_by_whichever_way_its_row_is_chosen(dtype: torch.dtype, chosen: list[int]) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(len(chosen), VOCABULARY, generator=generator).mul(2).to(dtype)
    rows = [Row(Sampling(max_tokens=9, seed=i, **ASKED[i]), i, [1, 2], [3, 4], request_id=f"{i}") for i in chosen]
    bits = torch.randint(0, 256, (len(ASKED), VOCABULARY // 8), generator=generator, dtype=torch.uint8).numpy()
    masks = Masks({(f"{i}", i): bits[i].tobytes() for i in chosen if "constraint" in ASKED[i]})
    before = logits.clone()

    asked = [replace(row, allowed=masks.allowed.get((row.request_id, row.position))) for row in rows]
    expected = sample(logits.float(), asked)
    for ops in (operations(dtype, CPU, one_thread), Operations(None), Unmasked(None)):
        assert choose(logits, rows, masks, ops).sent()() == expected
    assert torch.equal(logits, before)


def test_a_row_without_a_mask_has_its_error_and_others_their_tokens() -> None:
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(4))
    rows = [Row(Sampling(max_tokens=9, **ASKED[1]), 0, (), (), request_id=f"{i}") for i in range(3)]
    masks = Masks({("0", 0): bytes([16]), ("2", 0): bytes(VOCABULARY // 8)}, {("1", 0): "constraint_lost: gone"})

    first, second, third = choose(logits, rows, masks, operations(torch.float32, CPU, one_thread)).sent()()

    assert (first.token_id, first.error) == (4, "")
    assert (second.token_id, second.error) == (-1, "constraint_lost: gone")
    assert (third.token_id, third.error) == (-1, "")
