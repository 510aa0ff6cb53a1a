"""Split decode attention against float64, over pools that are NaN wherever nothing may be read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lorafleet_kernels.batch import HeadSizes
from lorafleet_kernels.gpu.attention.step import AttentionShape, DecodeScratch, attention_of_step
from lorafleet_kernels.gpu.forms.attention import DecodeTiles
from tests.kernels.gpu.attention_twin import DTYPES, LAYER, TOLERANCES, Case, a_case, longhand, worst

pytestmark = pytest.mark.interpreted


def run(case: Case, shape: AttentionShape | None = None) -> torch.Tensor:
    return case.attention(case.pool.clone(), shape)(LAYER, case.qkv.clone(), *case.norms)


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        *((HeadSizes(4, 1, 128, 1e-6), dtype) for dtype in DTYPES),
        (HeadSizes(6, 2, 80, 1e-6), torch.bfloat16),
        (HeadSizes(2, 2, 64, 1e-6), torch.float16),
    ],
)
def test_rows_of_all_lengths_attend_over_their_own_pages(
    sizes: HeadSizes, dtype: torch.dtype, device: torch.device
) -> None:
    case = a_case(dtype, sizes, [1, 300, 15, 16, 17, 33], [], device)

    assert worst(run(case), longhand(case)) < TOLERANCES[dtype]


@pytest.mark.parametrize(("heads", "size"), [(8, 64), (17, 64), (3, 256), (16, 6)])
def test_any_group_and_any_even_size(heads: int, size: int, device: torch.device) -> None:
    case = a_case(torch.float32, HeadSizes(heads, 1, size, 1e-6), [5, 70], [], device)

    assert worst(run(case), longhand(case)) < TOLERANCES[torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_forgotten_token_and_a_wrong_scale_are_noticed(dtype: torch.dtype, device: torch.device) -> None:
    case = a_case(dtype, HeadSizes(4, 1, 128, 1e-6), [2, 40], [], device)
    got = run(case)

    assert worst(got, longhand(case, forget=1)) > 2 * TOLERANCES[dtype]
    assert worst(got, longhand(case, scale=1.3)) > 2 * TOLERANCES[dtype]


@pytest.mark.parametrize("programs", [1, 2, 5, 9])
def test_however_a_row_is_cut_its_sums_agree(programs: int, device: torch.device) -> None:
    case = a_case(torch.float32, HeadSizes(3, 1, 64, 1e-6), [290, 3, 100], [], device)
    shape = case.shape()
    shape = replace(shape, decode=DecodeTiles(32, 4, 5, 1), cut=replace(shape.cut, programs=programs, block_pages=2))

    assert worst(run(case, shape), longhand(case)) < TOLERANCES[torch.float32]


def test_the_counters_are_zero_again_and_the_bits_the_same_every_time(device: torch.device) -> None:
    case = a_case(torch.float16, HeadSizes(4, 2, 64, 1e-6), [400, 90], [], device)
    shape = case.shape()
    scratch = DecodeScratch.of(shape, device)
    attention = attention_of_step(case.pool.clone(), case.batch, shape, case.tables, scratch)

    first = attention(LAYER, case.qkv.clone(), None, None)
    assert not scratch.arrived.any()
    scratch.sums.fill_(torch.nan)
    second = attention(LAYER, case.qkv.clone(), None, None)

    assert scratch.sums.isfinite().any(), "no row was cut: the test proves nothing"
    assert torch.equal(first, second)
