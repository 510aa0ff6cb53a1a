"""A whole step's attention, and a captured graph's: the same memory with other contents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lorafleet_kernels.batch import AttentionBatch, HeadSizes
from lorafleet_kernels.gpu.attention.plan import Bounds, DevicePlan, plan_attention
from lorafleet_kernels.gpu.attention.step import AttentionShape, DecodeScratch, TritonAttention
from lorafleet_kernels.reference_attention import ReferenceAttention, Scratch
from tests.kernels.gpu.attention_twin import DTYPES, LAYER, TOLERANCES, a_case, longhand, worst

pytestmark = pytest.mark.interpreted

SIZES = HeadSizes(6, 2, 64, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_rows_and_prompts_of_one_step(dtype: torch.dtype, device: torch.device) -> None:
    case = a_case(dtype, SIZES, [1, 130, 16], [(0, 4), (17, 20)], device, norms=True)

    out = case.attention(case.pool.clone())(LAYER, case.qkv.clone(), *case.norms)

    assert worst(out, longhand(case)) < TOLERANCES[dtype]


def test_it_is_what_the_reference_computes(device: torch.device) -> None:
    case = a_case(torch.float32, SIZES, [7, 40], [(5, 9)], device, norms=True)
    pool, mine = case.pool.nan_to_num(0.0), case.pool.nan_to_num(0.0)

    expected = ReferenceAttention(pool, case.batch, SIZES, case.tables, Scratch())(LAYER, case.qkv, *case.norms)
    got = case.attention(mine)(LAYER, case.qkv.clone(), *case.norms)

    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(mine, pool)


@pytest.mark.parametrize(("decodes", "chunks"), [([1], []), ([], [(0, 1)]), ([], [])])
def test_one_token_and_none(decodes: list[int], chunks: list[tuple[int, int]], device: torch.device) -> None:
    case = a_case(torch.float32, SIZES, decodes, chunks, device)

    out = case.attention(case.pool.clone())(LAYER, case.qkv.clone(), None, None)

    assert out.shape == (len(decodes) + len(chunks), 6 * 64)
    if len(out):
        assert worst(out, longhand(case)) < TOLERANCES[torch.float32]


def test_the_same_memory_serves_steps_of_other_sizes_and_padding_touches_nothing(device: torch.device) -> None:
    large = a_case(torch.float32, SIZES, [200, 3, 17], [(0, 5), (20, 9)], device)
    small = a_case(torch.float32, SIZES, [40], [(3, 2)], device)
    shape, bounds = large.shape(), Bounds(tokens=20, decodes=4, chunks=2, pages=40)
    host = np.full(bounds.length(shape.cut), 10**6, np.int32)
    memory = torch.from_numpy(host).to(device)
    scratch = DecodeScratch.of(shape, device)
    for case in (large, small, large):
        plan_attention(case.batch, shape.cut).pack(host, bounds, shape.cut)
        memory.copy_(torch.from_numpy(host))
        pool = case.pool.clone()
        plan = DevicePlan.view(memory, bounds, shape.cut)
        attention = TritonAttention(pool, plan, shape, case.tables, scratch)
        tokens = len(case.qkv)
        padded = torch.cat((case.qkv, torch.full((20 - tokens, case.qkv.shape[1]), 5.0, device=device)))

        out = attention(LAYER, padded, None, None)

        assert worst(out[:tokens], longhand(case)) < TOLERANCES[torch.float32]
        written = int((~pool.isnan()).sum() - (~case.pool.isnan()).sum())
        assert written == tokens * 2 * SIZES.kv_heads * SIZES.size


def test_contexts_of_ten_thousand_tokens(device: torch.device) -> None:
    case = a_case(torch.float16, HeadSizes(2, 1, 64, 1e-6), [10_001], [(10_000, 3)], device)

    out = case.attention(case.pool.clone())(LAYER, case.qkv.clone(), None, None)

    assert worst(out, longhand(case)) < TOLERANCES[torch.float16]


def test_heads_that_the_kernels_do_not_know_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="even size"):
        AttentionShape.of(HeadSizes(4, 2, 63, 1e-6), torch.float16, (9, 0), 132)
    with pytest.raises(ValueError, match="equal groups"):
        AttentionShape.of(HeadSizes(5, 2, 64, 1e-6), torch.float16, (9, 0), 132)
    case = a_case(torch.float32, SIZES, [1], [], device)
    with pytest.raises(ValueError, match="one after the other"):
        case.attention(case.pool.transpose(-1, -2).contiguous().transpose(-1, -2))


def test_how_many_programs_share_the_rows_depends_on_the_card_alone() -> None:
    shape = AttentionShape.of(HeadSizes(32, 8, 128, 1e-5), torch.bfloat16, (9, 0), 132)

    assert shape.cut.programs == 132 * shape.decode.resident // 8
    assert replace(shape.cut, programs=1).block_pages * 16 == shape.decode.tokens
    assert plan_attention(AttentionBatch([0], [1], [[0]], 1), shape.cut).decode_bounds.shape == (
        shape.cut.programs + 1,
    )
