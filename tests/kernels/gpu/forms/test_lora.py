"""Which form a step gets, and that the gate knows every form that can be chosen."""

from __future__ import annotations

from itertools import product

import pytest

from lorafleet_kernels.gpu.forms.lora import (
    GroupShape,
    StepShape,
    Variant,
    block_m,
    choose,
    fused_tiles,
    row_expands,
    row_shrinks,
    tile_expands,
    tile_shrinks,
    variant_for,
)

H200_PROCESSORS = 132
QKV = GroupShape(4096, (4096, 1024, 1024))
DOWN = GroupShape(14336, (4096,))


@pytest.mark.parametrize(
    ("rows", "segments", "variant", "block"),
    [
        (1, 1, Variant.ROWS, 1),
        (64, 64, Variant.ROWS, 1),  # all distinct
        (63, 16, Variant.ROWS, 1),
        (64, 16, Variant.TILES, 16),
        (64, 4, Variant.TILES, 16),
        (64, 1, Variant.TILES, 64),
        (8192, 2, Variant.TILES, 128),
        (0, 0, Variant.ROWS, 1),
    ],
)
def test_tiles_are_for_segments_of_four_tokens_and_more(rows: int, segments: int, variant: Variant, block: int) -> None:
    assert (variant_for(rows, segments), block_m(rows, segments, 256)) == (variant, block)


def test_a_model_of_odd_widths_has_small_tiles_only() -> None:
    assert block_m(8192, 1, 16) == 16
    config = choose(StepShape(8192, 1, 64), QKV, 16, H200_PROCESSORS)
    assert (config.shrink.m, config.shrink.k, config.expand.m, config.expand.n) == (16, 16, 16, 16)


@pytest.mark.parametrize(
    ("step", "group", "programs"),
    [
        (StepShape(64, 8, 16), QKV, 8),
        (StepShape(64, 64, 16), QKV, 64),
        (StepShape(1, 1, 16), DOWN, 1),
        (StepShape(8192, 4, 64), DOWN, 64),
    ],
)
def test_inputs_are_split_until_the_card_is_busy_or_the_splits_are_as_many_as_may_be(
    step: StepShape, group: GroupShape, programs: int
) -> None:
    config = choose(step, group, 256, H200_PROCESSORS)

    busy = programs * config.lanes * config.splits >= 2 * H200_PROCESSORS
    assert busy or config.splits == 16
    assert programs * config.lanes * (config.splits // 2) < 2 * H200_PROCESSORS


def test_every_form_that_can_be_chosen_goes_through_the_gate() -> None:
    shipped = {Variant.TILES: (tile_shrinks(), tile_expands()), Variant.ROWS: (row_shrinks(), row_expands())}
    rows_and_segments = product((1, 8, 64, 300, 8192), (1, 8, 64, 300))
    others = product((1, 16, 17, 64, 256), (16, 32, 64, 128, 256), (QKV, DOWN))
    for (rows, segments), (max_rank, grain, group) in product(rows_and_segments, others):
        config = choose(StepShape(rows, min(rows, segments), max_rank), group, grain, H200_PROCESSORS)
        shrinks, expands = shipped[config.variant]
        assert config.shrink in shrinks
        assert config.expand in expands
        assert fused_tiles(grain) in row_expands()
        assert config.shrink.k <= grain
        assert config.expand.n <= grain
        assert config.shrink.m == config.expand.m == block_m(rows, min(rows, segments), grain)
