"""Shrink and expand over pages against their specification in float64: whatever ranks, rows and widths there are."""

from __future__ import annotations

import pytest
import torch

from lorafleet_kernels.gpu.forms.lora import LoraConfig, Tiles, Variant
from tests.kernels.gpu.lora_kit import LAYER, ODD, TYPES, USUAL, Case, Ranks, close, make, narrow, shapes

pytestmark = pytest.mark.interpreted

VARIANTS = tuple(Variant)
MIXED: tuple[Ranks, ...] = (
    {"q_proj": 1, "k_proj": 3, "v_proj": 2, "down_proj": 1},
    {"q_proj": 17, "o_proj": 2, "up_proj": 4},
    {},
    {"v_proj": 5, "gate_proj": 16, "up_proj": 1},
)
"""Of all three, of one, of none, of the last; with no two projections of one rank."""
SEGMENTS = ((0, 1, 0), (1, 3, -1), (3, 5, 1), (5, 5, 3), (5, 6, 2), (6, 8, 3))


def check(case: Case, group: str, k: int, columns: int, rows: int) -> None:
    x, y = case.inputs(rows, k), case.inputs(rows, columns)
    expected, before = case.expected(group, x, y), y.clone()

    case.step(LAYER, group, x, y)

    close(y, expected)
    base = case.base_rows(rows)
    assert torch.equal(y[base], before[base])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("group", ["qkv", "gate_up"])
def test_every_row_gets_its_own_adapters_delta(
    group: str, variant: Variant, dtype: torch.dtype, device: torch.device
) -> None:
    shape = shapes(USUAL)[group]
    case = make(MIXED, SEGMENTS, dtype, device, rows=9, variant=variant)

    check(case, group, shape.k, sum(shape.widths), 9)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("group", ["qkv", "o", "gate_up", "down"])
def test_widths_that_no_tile_divides(group: str, variant: Variant, device: torch.device) -> None:
    shape = shapes(ODD)[group]
    case = make(MIXED, SEGMENTS, torch.bfloat16, device, rows=8, config=ODD, variant=variant)

    check(case, group, shape.k, sum(shape.widths), 8)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rank", [1, 256])
def test_any_rank_in_one_form(rank: int, variant: Variant, device: torch.device) -> None:
    case = make([{"o_proj": rank}, {"o_proj": 256}], ((0, 2, 0),), torch.float16, device, rows=2, variant=variant)

    check(case, "o", 256, 256, 2)


@pytest.mark.parametrize(
    "tiles",
    [(16, 64, 128, 64, 5), (64, 32, 64, 32, 1), (128, 16, 64, 16, 2)],
    ids=["decode", "prompts", "long prompts"],
)
def test_every_size_of_tiles_and_any_number_of_splits(
    tiles: tuple[int, int, int, int, int], device: torch.device
) -> None:
    m, n, k, r, splits = tiles
    lora = LoraConfig(Variant.TILES, Tiles(m, n, k, 4, 2), Tiles(m, 128, r, 4, 2), splits, 1)
    case = make([{"down_proj": 33}], ((1, 2 + m, 0),), torch.bfloat16, device, rows=m + 3, lora=lora)

    check(case, "down", 384, 256, m + 3)


def test_a_split_without_inputs_writes_zeros(device: torch.device) -> None:
    lora = narrow(Variant.TILES, 128, splits=8)
    case = make([{"o_proj": 2}], ((0, 1, 0),), torch.float32, device, rows=1, lora=lora)

    check(case, "o", 256, 256, 1)

    planes = case.scratch.planes[: 8 * 2].view(8, 2)  # of one row and rank 2, where K has two tiles
    assert (planes[:2] != 0).all()
    assert (planes[2:] == 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_token(variant: Variant, device: torch.device) -> None:
    check(make(MIXED, ((0, 1, 1),), torch.bfloat16, device, rows=1, variant=variant), "o", 256, 256, 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_empty_batch_starts_nothing(variant: Variant, device: torch.device) -> None:
    case = make(MIXED, (), torch.bfloat16, device, rows=4, variant=variant)

    case.step(LAYER, "o", case.inputs(0, 256), case.inputs(0, 256))

    assert case.step.launches == 0


def test_the_same_step_has_the_same_bits(device: torch.device) -> None:
    case = make(MIXED, SEGMENTS, torch.bfloat16, device, rows=8)
    x, y = case.inputs(8, 256), case.inputs(8, 512)
    again = y.clone()

    case.step(LAYER, "qkv", x, y)
    case.scratch.planes.fill_(float("nan"))
    case.step(LAYER, "qkv", x, again)

    assert torch.equal(y, again)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_tolerance_notices_a_second_rounding(dtype: torch.dtype, device: torch.device) -> None:
    case = make([{"o_proj": 16}], ((0, 8, 0),), dtype, device, rows=8)
    x, y = case.inputs(8, 256), torch.zeros(8, 256, dtype=dtype)
    view = case.truth[0]["o"]
    h = (x.double().cpu() @ view.a.t()).to(dtype).double()

    with pytest.raises(AssertionError, match="times what"):
        close((h @ view.parts[0].b).to(dtype), case.expected("o", x, y))


def test_the_tolerance_notices_a_bridge_of_ten_bits(device: torch.device) -> None:
    case = make([{"o_proj": 16}], ((0, 8, 0),), torch.float32, device, rows=8)
    x, y = case.inputs(8, 256), torch.zeros(8, 256)
    view = case.truth[0]["o"]
    h = (x.double().cpu() @ view.a.t()).half().double()

    with pytest.raises(AssertionError, match="times what"):
        close((h @ view.parts[0].b).float(), case.expected("o", x, y))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_tolerance_notices_a_rank_left_out(dtype: torch.dtype, device: torch.device) -> None:
    case = make([{"o_proj": 64}], ((0, 8, 0),), dtype, device, rows=8)
    x, y = case.inputs(8, 256), torch.zeros(8, 256, dtype=dtype)
    view = case.truth[0]["o"]

    with pytest.raises(AssertionError, match="times what"):
        close((x.double().cpu() @ view.a[:63].t() @ view.parts[0].b[:63]).to(dtype), case.expected("o", x, y))


def test_sizes_that_are_not_the_layers_are_refused(device: torch.device) -> None:
    case = make(MIXED, SEGMENTS, torch.bfloat16, device, rows=8)

    with pytest.raises(ValueError, match="qkv: 100 columns; the layer has 256"):
        case.step.shrink(LAYER, "qkv", case.inputs(8, 100))
    with pytest.raises(ValueError, match="qkv: 9 rows; the step's buffer describes 8"):
        case.step.shrink(LAYER, "qkv", case.inputs(9, 256))
