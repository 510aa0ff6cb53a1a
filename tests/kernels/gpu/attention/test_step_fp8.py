"""A step's attention over keys and values of 8 bits: against float64 over what lies in its pages, which are NaN, their
scales too, wherever nothing may be read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lorafleet_kernels.batch import HeadSizes
from lorafleet_kernels.gpu.attention.plan import Bounds, DevicePlan, plan_attention
from lorafleet_kernels.gpu.attention.step import AttentionShape, DecodeScratch, TritonAttention, attention_of_step
from lorafleet_kernels.gpu.forms.attention import decode_tiles
from lorafleet_kernels.gpu.forms.lora import Variant
from lorafleet_kernels.reference_fp8 import FP8, ReferenceFp8Attention
from tests.kernels.gpu import lora_kit
from tests.kernels.gpu.attention_twin import DTYPES, LAYER, Case, a_case, longhand, worst
from tests.kernels.gpu.fp8_twin import TOLERANCES, Pages, fp8_shape
from tests.kernels.gpu.lora_kit import USUAL

pytestmark = pytest.mark.interpreted

SIZES = HeadSizes(6, 2, 64, 1e-6)


def run(case: Case, pages: Pages, shape: AttentionShape | None = None) -> torch.Tensor:
    return pages.attention(case, shape)(LAYER, case.qkv.clone(), *case.norms)


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        *((HeadSizes(4, 1, 128, 1e-6), dtype) for dtype in DTYPES),
        (HeadSizes(6, 2, 80, 1e-6), torch.bfloat16),
        (HeadSizes(17, 1, 64, 1e-6), torch.float16),
        (HeadSizes(3, 1, 256, 1e-6), torch.float32),
        (HeadSizes(2, 2, 16, 1e-6), torch.float32),
    ],
)
def test_decode_rows_and_prompts_attend_over_their_own_pages(
    sizes: HeadSizes, dtype: torch.dtype, device: torch.device
) -> None:
    case = a_case(dtype, sizes, [1, 15, 16, 130], [(0, 1), (0, 17), (16, 5), (63, 2)], device, norms=True)
    pages = Pages.of(case)

    out = run(case, pages)

    assert worst(out, longhand(case, pages=pages.restored())) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_forgotten_token_a_wrong_scale_and_exchanged_halves_are_noticed(
    dtype: torch.dtype, device: torch.device
) -> None:
    case = a_case(dtype, HeadSizes(4, 1, 128, 1e-6), [2, 40], [(20, 9)], device)
    pages = Pages.of(case)
    got, held = run(case, pages), pages.restored()

    assert worst(got, longhand(case, forget=1, pages=held)) > 2 * TOLERANCES[dtype]
    assert worst(got, longhand(case, scale=1.3, pages=held)) > 2 * TOLERANCES[dtype]
    assert worst(got, longhand(case, pages=held.roll(64, -1))) > 2 * TOLERANCES[dtype]
    assert worst(got, longhand(case, pages=2 * held)) > 2 * TOLERANCES[dtype]


@pytest.mark.parametrize("sizes", [HeadSizes(4, 2, 64, 1e-6), HeadSizes(9, 3, 80, 1e-6)])
def test_pages_become_what_the_reference_makes_of_them_and_nothing_else_is_written(
    sizes: HeadSizes, device: torch.device
) -> None:
    case = a_case(torch.float32, sizes, [1, 16, 17], [(0, 3), (30, 4)], device, norms=True)
    mine, expected, before = (Pages.of(case) for _ in range(3))

    out = run(case, mine)

    twin = ReferenceFp8Attention(expected.data, expected.scales, case.batch, sizes, case.tables)
    torch.testing.assert_close(out, twin(LAYER, case.qkv.clone(), *case.norms))
    written = mine.data.view(torch.uint8) != before.data.view(torch.uint8)
    assert torch.equal(mine.scales.view(torch.int16), expected.scales.view(torch.int16))
    # A rotation that differs in its last bit may take an element to its other neighbour.
    differ = mine.data.view(torch.uint8) != expected.data.view(torch.uint8)
    assert int(differ.sum()) <= 0.01 * int(written.sum())
    assert int(written.any(-1).sum()) == len(case.qkv) * 2 * sizes.kv_heads


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_written_to_the_bit_whatever_the_models_type(dtype: torch.dtype, device: torch.device) -> None:
    case = a_case(dtype, SIZES, [5, 17], [(0, 3)], device)
    mine, expected = Pages.of(case), Pages.of(case)

    run(case, mine)

    ReferenceFp8Attention(expected.data, expected.scales, case.batch, SIZES, case.tables)(
        LAYER, case.qkv.clone(), None, None
    )
    assert torch.equal(mine.data[LAYER, :, 1].view(torch.uint8), expected.data[LAYER, :, 1].view(torch.uint8))
    assert torch.equal(mine.scales[..., 1].view(torch.int16), expected.scales[..., 1].view(torch.int16))


@pytest.mark.parametrize("programs", [1, 2, 9])
def test_however_a_row_is_cut_its_sums_agree(programs: int, device: torch.device) -> None:
    case = a_case(torch.float32, HeadSizes(3, 1, 80, 1e-6), [290, 3, 100], [], device)
    shape = fp8_shape(case)
    shape = replace(shape, cut=replace(shape.cut, programs=programs))
    pages = Pages.of(case)

    out = run(case, pages, shape)

    assert worst(out, longhand(case, pages=pages.restored())) < TOLERANCES[torch.float32]


def test_keys_and_values_of_any_magnitude_are_read_as_they_were(device: torch.device) -> None:
    case = a_case(torch.float32, SIZES, [40], [(3, 20)], device)
    case.qkv[:, SIZES.heads * 64 :] *= 1e-6
    case.pool[:, :, 0] *= 1e-4
    case.pool[:, :, 1] *= 1e4
    pages = Pages.of(case)

    out = run(case, pages)

    assert worst(out, longhand(case, pages=pages.restored())) < TOLERANCES[torch.float32]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_key_that_is_not_finite_is_seen_in_the_rows_that_read_it_and_in_no_others(device: torch.device) -> None:
    case = a_case(torch.float32, SIZES, [3, 5], [], device)
    case.qkv[0, SIZES.heads * 64 + 7] = torch.inf

    out = run(case, Pages.of(case)).view(2, 2, 3 * 64)

    assert out.isnan().all(-1).tolist() == [[True, False], [False, False]]


def test_the_same_memory_serves_steps_of_other_sizes_and_padding_touches_nothing(device: torch.device) -> None:
    large = a_case(torch.float32, SIZES, [200, 3, 17], [(0, 5), (20, 9)], device)
    small = a_case(torch.float32, SIZES, [40], [(3, 2)], device)
    shape, bounds = fp8_shape(large), Bounds(tokens=20, decodes=4, chunks=2, pages=40)
    host = np.full(bounds.length(shape.cut), 10**6, np.int32)
    memory = torch.from_numpy(host).to(device)
    scratch = DecodeScratch.of(shape, device)
    for case in (large, small, large):
        plan_attention(case.batch, shape.cut).pack(host, bounds, shape.cut)
        memory.copy_(torch.from_numpy(host))
        pages, before = Pages.of(case), Pages.of(case)
        plan = DevicePlan.view(memory, bounds, shape.cut)
        attention = TritonAttention(pages.data, plan, shape, case.tables, scratch, pages.scales)
        tokens = len(case.qkv)
        padded = torch.cat((case.qkv, torch.full((20 - tokens, case.qkv.shape[1]), 5.0, device=device)))

        out = attention(LAYER, padded, None, None)

        assert worst(out[:tokens], longhand(case, pages=pages.restored())) < TOLERANCES[torch.float32]
        written = int((~pages.scales.isnan()).sum() - (~before.scales.isnan()).sum())
        assert written == tokens * 2 * SIZES.kv_heads


def test_behind_an_expand_the_same_is_written(device: torch.device) -> None:
    sizes = HeadSizes(USUAL.num_heads, USUAL.num_kv_heads, USUAL.head_dim, 1e-5)
    case = a_case(torch.float32, sizes, [1, 20], [(5, 4)], device, norms=True)
    segments = ((0, 1, 0), (1, 2, -1), (2, 6, 1))
    lora = lora_kit.make(
        ({"q_proj": 3, "k_proj": 18, "v_proj": 1}, {"v_proj": 5}), segments, torch.float32, device, rows=6,
        config=USUAL, variant=Variant.ROWS,
    )  # fmt: skip
    x = lora.inputs(6, USUAL.hidden_size)
    expected, mine, apart, fused = Pages.of(case), Pages.of(case), case.qkv.clone(), case.qkv.clone()

    lora.step(LAYER, "qkv", x, apart)
    q_norm, k_norm = case.norms
    wanted = expected.attention(case)(LAYER, apart, q_norm, k_norm)
    lora.step.shrink(LAYER, "qkv", x)
    got = mine.attention(case)(LAYER, fused, q_norm, k_norm, lora.step.pending(LAYER, "qkv", fused))

    assert torch.equal(got, wanted)
    assert torch.equal(mine.data.view(torch.uint8), expected.data.view(torch.uint8))
    assert torch.equal(mine.scales.view(torch.int16), expected.scales.view(torch.int16))


def test_heads_and_pools_that_the_kernels_do_not_know_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="heads of size 72: keys and values of 8 bits want a multiple of 16"):
        AttentionShape.of(HeadSizes(4, 2, 72, 1e-6), torch.float16, (9, 0), 132, FP8)
    case = a_case(torch.float32, SIZES, [1], [], device)
    pages, shape = Pages.of(case), fp8_shape(case)
    turned = pages.data.view(torch.uint8).transpose(2, 3).contiguous().transpose(2, 3).view(FP8)
    with pytest.raises(ValueError, match="in the order of their dimensions"):
        attention_of_step(turned, case.batch, shape, case.tables, DecodeScratch.of(shape, device), pages.scales)


@pytest.mark.parametrize("size", [64, 80, 128, 256])
def test_as_many_bytes_are_in_flight_as_a_processor_needs(size: int) -> None:
    tiles = decode_tiles(size, 4, FP8, (9, 0))

    # Two of keys and values by each program; some 30 KB hide the latency of an H200's memory.
    assert 2 * tiles.tokens * 2 * size * tiles.resident >= 30e3
