"""The groups of a step share its work items, and only what ships is run."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from lorafleet_kernels.gpu.forms.lora import GroupShape, StepShape, Tiles, Variant, block_m, choose
from lorafleet_kernels.gpu.forms.step import StepForms, default_forms, why_not

GROUPS = {"qkv": GroupShape(4096, (4096, 1024, 1024)), "down": GroupShape(14336, (4096,))}
USUAL = choose(StepShape(64, 4, 32), GROUPS["qkv"], 256, 132)


def test_the_default_forms_of_any_step_share_its_work_items_and_ship() -> None:
    sizes = product((1, 8, 64, 300, 8192), (1, 8, 64, 300), (0, 1, 16, 64, 256), (16, 32, 64, 128, 256))
    for rows, segments, rank, grain in sizes:
        step = StepShape(rows, min(rows, segments), rank)
        forms = default_forms(step, GROUPS, grain, 132)
        assert forms.m == block_m(step.rows, step.segments, grain)
        assert forms.configs.keys() == GROUPS.keys()
        assert [why_not(config, grain) for config in forms.configs.values()] == ["", ""]


def test_a_default_that_cuts_few_inputs_to_single_tiles_ships() -> None:
    (config,) = default_forms(StepShape(1, 1, 2), {"down": GroupShape(112, (64,))}, 16, 132).configs.values()

    assert config.splits == 7
    assert why_not(config, 16) == ""


def test_groups_of_two_heights_are_no_step() -> None:
    other = choose(StepShape(64, 1, 32), GROUPS["down"], 256, 132)

    with pytest.raises(ValueError, match="down: tiles of 64 and 64 rows in a step of tiles of 16"):
        StepForms(Variant.TILES, 16, {"qkv": USUAL, "down": other})


@pytest.mark.parametrize(
    ("config", "grain", "reason"),
    [
        (replace(USUAL, shrink=Tiles(16, 48, 128, 4, 5)), 256, "no shrink by tiles of 16x48x128 w4 s5 ships"),
        (replace(USUAL, expand=Tiles(16, 128, 16, 8, 2)), 256, "no expand by tiles of 16x128x16 w8 s2 ships"),
        (replace(USUAL, variant=Variant.ROWS), 256, "no shrink by rows"),
        (USUAL, 64, "longer than the grain, 64"),
        (replace(USUAL, splits=0), 256, "0 splits are not in 1..16"),
        (replace(USUAL, splits=32), 256, "32 splits"),
        (replace(USUAL, lanes=5), 256, "5 lanes are not in 1..4"),
    ],
)
def test_why_a_form_may_not_run_is_said(config: object, grain: int, reason: str) -> None:
    assert reason in why_not(config, grain)  # type: ignore[arg-type]
