"""Words of two features: what kernels make of them, and of heads, is torch's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from lorafleet_kernels.gpu.kernels.fp8_pairs import HIGH, LOW, high, low, quantised
from lorafleet_kernels.reference_fp8 import FP8, quantise

WORDS = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
NUMBERS = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(FP8).float().nan_to_num(480.0)
"""Of every byte. What is NaN in e4m3 never stands in a pool, where kernels would take it for 480 and its sign."""


@triton.jit  # type: ignore[untyped-decorator]
def _take_apart(words, lows, highs, N: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * N + tl.arange(0, N)
    here = tl.load(words + at)
    tl.store(lows + at, low(here, True))
    tl.store(highs + at, high(here, True))


@triton.jit  # type: ignore[untyped-decorator]
def _quantise(x, words, scales, HALF: tl.constexpr, HEADS: tl.constexpr):  # type: ignore[no-untyped-def]
    head = tl.arange(0, HEADS)
    d = tl.arange(0, HALF)
    here = x + head[:, None] * (2 * HALF) + d[None, :]
    made, scale = quantised(tl.load(here), tl.load(here + HALF))
    tl.store(words + head[:, None] * HALF + d[None, :], made)
    tl.store(scales + head, scale)


def expected_features() -> tuple[torch.Tensor, torch.Tensor]:
    """Low and high of all words, · 2^-120."""
    bytes_of = WORDS.view(torch.uint8).view(-1, 2).long()
    numbers = torch.where(torch.arange(256) == 255, -480.0, NUMBERS) * 2.0**-120
    return numbers[bytes_of[:, 0]], numbers[bytes_of[:, 1]]


def test_every_word_is_taken_apart_into_its_two_features(device: torch.device) -> None:
    lows, highs = (torch.empty(2**16, device=device) for _ in range(2))

    _take_apart[(16,)](WORDS.to(device), lows, highs, 2**12)

    for got, wanted in zip((lows, highs), expected_features(), strict=True):
        assert torch.equal(got.cpu(), wanted)


def run_ptx(text: str, word: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """What a few instructions of PTX make of `$1`: the interpreter knows none, and no card is needed for these."""
    registers = {"$1": word}
    for line in text.strip("{} \n").split(";"):
        operation, *rest = line.replace(",", " ").split() or [""]
        if operation in ("", ".reg"):
            continue
        target, a, b = rest
        left, right = registers[a], registers[b] if b in registers else np.uint32(int(b, 0))
        registers[target] = {
            "shl.b32": np.left_shift, "shr.u32": np.right_shift, "and.b32": np.bitwise_and, "or.b32": np.bitwise_or
        }[operation](left, right)  # fmt: skip
    return registers["$0"]


@pytest.mark.parametrize("half", [0, 1])
def test_the_instructions_that_cards_get_give_the_same_of_two_words_at_once(half: int) -> None:
    text = (LOW, HIGH)[half].value
    words = torch.stack((WORDS, WORDS.flip(0)), 1).contiguous()

    pairs = run_ptx(text, words.view(torch.int32).flatten().numpy().view(np.uint32))

    made = torch.from_numpy(pairs.view(np.int16)).view(torch.bfloat16).view(-1, 2).float()
    wanted = expected_features()[half]
    assert torch.equal(made[:, 0], wanted)
    assert torch.equal(made[:, 1], wanted.flip(0))


@pytest.mark.parametrize("magnitude", [0.0, 1e-30, 3e-3, 1.0, 448.0, 7e4, 1e30])
def test_heads_become_the_words_and_scales_of_the_reference(magnitude: float, device: torch.device) -> None:
    x = magnitude * torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    x[0, :8] = magnitude * torch.tensor([1.0, -1.0, 0.0, -0.0, 2.0**-9, 2.0**-17, 1.75, 0.875])
    x[1, 1:] *= 2.0**-14
    words = torch.empty(8, 32, dtype=torch.int16, device=device)
    scales = torch.empty(8, dtype=torch.int16, device=device)

    _quantise[(1,)](x.to(device), words, scales, 32, 8)

    elements, expected = quantise(x)
    assert torch.equal(words.cpu(), elements.view(torch.int16))
    assert torch.equal(scales.cpu().view(torch.bfloat16), expected)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_the_scale_of_a_head_that_is_not_finite_is_nan(bad: float, device: torch.device) -> None:
    x = torch.ones(8, 64)
    x[2, 40] = bad
    words = torch.empty(8, 32, dtype=torch.int16, device=device)
    scales = torch.empty(8, dtype=torch.int16, device=device)

    _quantise[(1,)](x.to(device), words, scales, 32, 8)

    assert scales.view(torch.bfloat16).isnan().tolist() == [head == 2 for head in range(8)]
