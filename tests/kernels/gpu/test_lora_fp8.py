"""Kernels over adapters in fp8, in both types that they read them as: what the dequantised adapters give, bit for bit,
whatever ranks and widths there are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lorafleet_kernels.batch import HeadSizes
from lorafleet_kernels.fp8_rows import dequantise, quantise
from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.lora import Variant, over_fp8, row_expands
from lorafleet_kernels.gpu.forms.weight_types import CONVERTS, FP8, as_fp8
from lorafleet_runtime.model.adapter_weights import AdapterWeights, LoraPair
from lorafleet_runtime.model.config import DecoderConfig
from tests.kernels.gpu import attention_twin
from tests.kernels.gpu.lora_kit import LAYER, ODD, TYPES, USUAL, Case, Ranks, close, make, shapes, weights

pytestmark = pytest.mark.interpreted

MIXED: tuple[Ranks, ...] = (
    {"q_proj": 1, "k_proj": 3, "v_proj": 18, "o_proj": 8, "gate_proj": 5, "down_proj": 33},
    {"q_proj": 17, "o_proj": 2, "up_proj": 4},
    {},
)
SEGMENTS = ((0, 1, 0), (1, 3, -1), (3, 5, 1), (5, 6, 2), (6, 8, 0))
EPS = 1e-5


def readable(fp8: torch.dtype, device: torch.device) -> torch.dtype:
    """This type for e4m3, or bytes where a card does not know it; the interpreter knows both."""
    return fp8 if Card.of(device).capability >= CONVERTS else torch.uint8


def uneven(ranks: Ranks, config: DecoderConfig, seed: int) -> AdapterWeights:
    """Random pairs whose rows differ in size, so that a wrong row's scale is seen."""
    plain = weights(ranks, config, torch.Generator().manual_seed(seed))
    pairs = {}
    for place, pair in plain.modules.items():
        size = 4.0 ** -(torch.arange(len(pair.a)) % 4)
        pairs[place] = LoraPair(pair.a * size[:, None], pair.b * 2.0 ** (torch.arange(len(size)) % 3))
    return replace(plain, modules=pairs)


def dequantised(weights: AdapterWeights) -> AdapterWeights:
    pairs = {
        place: LoraPair(dequantise(*quantise(pair.a)), dequantise(*quantise(pair.b.t())).t().contiguous())
        for place, pair in weights.modules.items()
    }
    return replace(weights, modules=pairs)


def pair_of_cases(
    dtype: torch.dtype, device: torch.device, fp8: torch.dtype, config: DecoderConfig, variant: Variant
) -> tuple[Case, Case]:
    """A step over adapters in fp8, and the same over what they stand for."""
    modules = [uneven(ranks, config, seed) for seed, ranks in enumerate(MIXED)]
    plain = [dequantised(each) for each in modules]
    coded = make(MIXED, SEGMENTS, dtype, device, rows=9, config=config, variant=variant, fp8=fp8, modules=modules)
    return coded, make(MIXED, SEGMENTS, dtype, device, rows=9, config=config, variant=variant, modules=plain)


@pytest.mark.parametrize(("config", "group"), [(USUAL, "qkv"), (ODD, "down")], ids=["usual", "odd"])
@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize(("dtype", "fp8"), [(TYPES[0], FP8[0]), (TYPES[1], FP8[1]), (TYPES[2], FP8[1])])
def test_deltas_are_those_of_the_dequantised_adapters(
    dtype: torch.dtype, fp8: torch.dtype, variant: Variant, config: DecoderConfig, group: str, device: torch.device
) -> None:
    coded, plain = pair_of_cases(dtype, device, readable(fp8, device), config, variant)
    shape = shapes(config)[group]
    x, y = coded.inputs(9, shape.k), coded.inputs(9, sum(shape.widths))
    expected, before, same = coded.expected(group, x, y), y.clone(), y.clone()
    coded.step(LAYER, group, x, y)
    plain.step(LAYER, group, x, same)

    close(y, expected)
    assert torch.equal(y[coded.base_rows(9)], before[coded.base_rows(9)])
    assert torch.equal(y, same)


@pytest.mark.parametrize("variant", Variant)
@pytest.mark.parametrize("rank", [1, 3, 8, 64, 256])
def test_any_rank_has_its_rows_scales(rank: int, variant: Variant, device: torch.device) -> None:
    fp8 = readable(FP8[rank in (1, 64)], device)
    modules = [uneven({"o_proj": r}, USUAL, r) for r in (rank, 256)]
    case = make([{"o_proj": rank}, {"o_proj": 256}], ((0, 2, 0),), torch.bfloat16, device, rows=2, variant=variant,
                fp8=fp8, modules=modules)  # fmt: skip
    x, y = case.inputs(2, 256), case.inputs(2, 256)
    expected = case.expected("o", x, y)

    case.step(LAYER, "o", x, y)

    close(y, expected)


@pytest.mark.parametrize(("config", "fp8"), [(USUAL, FP8[0]), (ODD, FP8[1])], ids=["usual", "odd"])
def test_kernels_that_take_in_an_expand_read_fp8_too(
    config: DecoderConfig, fp8: torch.dtype, device: torch.device
) -> None:
    sizes = HeadSizes(config.num_heads, config.num_kv_heads, config.head_dim, EPS)
    steps = pair_of_cases(torch.float32, device, readable(fp8, device), config, Variant.ROWS)
    first = steps[0]
    x, gate_up = first.inputs(9, config.hidden_size), first.inputs(9, 2 * config.intermediate_size)
    activated, y = first.inputs(9, config.intermediate_size), first.inputs(9, config.hidden_size)
    heads = attention_twin.a_case(torch.float32, sizes, [1, 20, 3, 4, 2], [(5, 4)], device, norms=True)
    q_norm, k_norm = heads.norms
    got: list[list[Tensor]] = []
    for case in steps:
        step, residual, qkv, pool = case.step, y.clone(), heads.qkv.clone(), heads.pool.clone()
        step.shrink(LAYER, "gate_up", x)
        outputs = [step.expand_silu_and_mul(LAYER, gate_up)]
        step.shrink(LAYER, "down", activated)
        outputs.append(step.expand_add_rms_norm(LAYER, "down", residual, y, y[0], EPS))
        step.shrink(LAYER, "qkv", x)
        attend = heads.attention(pool)
        outputs.append(attend(attention_twin.LAYER, qkv, q_norm, k_norm, step.pending(LAYER, "qkv", qkv)))
        got.append([*outputs, residual])

    for coded, plain in zip(*got, strict=True):
        assert torch.equal(coded, plain)
        assert coded.isfinite().all()


@pytest.mark.parametrize("dtype", TYPES)
def test_the_tolerance_notices_what_quantising_changes(dtype: torch.dtype, device: torch.device) -> None:
    ranks: Ranks = {"o_proj": 16}
    modules = uneven(ranks, USUAL, 0)
    case = make([ranks], ((0, 8, 0),), dtype, device, rows=8, fp8=torch.uint8, modules=[modules])
    x, y = case.inputs(8, 256), torch.zeros(8, 256, dtype=dtype)
    pair = modules.modules[LAYER, "o_proj"]

    with pytest.raises(AssertionError, match="times what"):
        close((x.double().cpu() @ pair.a.double().t() @ pair.b.double().t()).to(dtype), case.expected("o", x, y))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_tolerance_notices_one_rows_scale_doubled(dtype: torch.dtype, device: torch.device) -> None:
    ranks: Ranks = {"o_proj": 64}
    case = make([ranks], ((0, 8, 0),), dtype, device, rows=8, fp8=torch.uint8, modules=[uneven(ranks, USUAL, 0)])
    x, y = case.inputs(8, 256), torch.zeros(8, 256, dtype=dtype)
    view = case.truth[0]["o"]
    doubled = view.a.clone()
    doubled[7] *= 2  # the row with the least of all scales

    with pytest.raises(AssertionError, match="times what"):
        close((x.double().cpu() @ doubled.t() @ view.parts[0].b).to(dtype), case.expected("o", x, y))


def test_a_card_without_the_conversion_gets_bytes() -> None:
    pool = torch.zeros(2, 3, 32, dtype=torch.bfloat16)

    assert as_fp8(pool, (8, 6)).dtype is torch.uint8
    assert as_fp8(pool, (8, 9)).dtype is torch.float8_e4m3fn
    assert as_fp8(pool, (9, 0)).shape == (2, 3, 64)
    assert as_fp8(pool, (9, 0)).data_ptr() == pool.data_ptr()


def test_expands_by_rows_differ_in_threads_alone() -> None:
    for tiles in row_expands():
        assert replace(over_fp8(tiles), warps=tiles.warps) == tiles
