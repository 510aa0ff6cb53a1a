"""Attention of prompts' chunks against float64, over pools that are NaN wherever nothing may be read."""

from __future__ import annotations

import pytest
import torch

from lorafleet_kernels.batch import HeadSizes
from tests.kernels.gpu.attention_twin import DTYPES, LAYER, TOLERANCES, Case, a_case, longhand, worst

pytestmark = pytest.mark.interpreted


def run(case: Case) -> torch.Tensor:
    return case.attention(case.pool.clone())(LAYER, case.qkv.clone(), *case.norms)


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        *((HeadSizes(4, 1, 128, 1e-6), dtype) for dtype in DTYPES),
        (HeadSizes(6, 2, 80, 1e-6), torch.bfloat16),
        (HeadSizes(2, 2, 64, 1e-6), torch.float16),
    ],
)
def test_chunks_attend_over_what_was_cached_and_causally_over_themselves(
    sizes: HeadSizes, dtype: torch.dtype, device: torch.device
) -> None:
    case = a_case(dtype, sizes, [], [(0, 1), (0, 17), (16, 5), (63, 2), (64, 1), (150, 40)], device)

    assert worst(run(case), longhand(case)) < TOLERANCES[dtype]


@pytest.mark.parametrize(("heads", "size"), [(8, 64), (17, 64), (3, 256), (16, 6)])
def test_any_group_and_any_even_size(heads: int, size: int, device: torch.device) -> None:
    case = a_case(torch.float32, HeadSizes(heads, 1, size, 1e-6), [], [(33, 9)], device)

    assert worst(run(case), longhand(case)) < TOLERANCES[torch.float32]


def test_a_chunk_longer_than_a_program_takes_goes_to_several(device: torch.device) -> None:
    case = a_case(torch.float32, HeadSizes(3, 1, 64, 1e-6), [], [(20, 90)], device)
    assert case.shape().cut.queries < 90 / 2

    assert worst(run(case), longhand(case)) < TOLERANCES[torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_forgotten_token_and_a_wrong_scale_are_noticed(dtype: torch.dtype, device: torch.device) -> None:
    case = a_case(dtype, HeadSizes(4, 1, 128, 1e-6), [], [(20, 20)], device)
    got = run(case)

    assert worst(got, longhand(case, forget=1)) > 2 * TOLERANCES[dtype]
    assert worst(got, longhand(case, scale=1.3)) > 2 * TOLERANCES[dtype]
