"""A step gets the forms of the nearest step that was measured, and what it gets is always valid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafleet_kernels.gpu.forms.lora import StepShape, Variant, variant_for
from lorafleet_kernels.gpu.forms.step import SPLITS, default_forms, why_not
from lorafleet_kernels.gpu.tuning.document import Tuning
from lorafleet_kernels.gpu.tuning.lora.lookup import ModelShapes, TunedForms, forms_for
from lorafleet_kernels.gpu.tuning.lora.steps import steps_to_tune
from tests.kernels.gpu.tuning.tunings import CARD, SHAPES, attention_tuning, tuning

PROCESSORS = CARD.processors


def splits(step: StepShape, tunings: Sequence[Tuning], shapes: ModelShapes = SHAPES) -> int:
    """Which tuning a step got."""
    return forms_for(step, tunings, shapes, PROCESSORS).configs["o"].splits


def test_the_nearest_step_that_was_measured_decides() -> None:
    known = [tuning(16, 16, splits=2), tuning(64, 64, splits=4), tuning(64, 16, splits=8)]

    assert splits(StepShape(24, 20, 16), known) == 2
    assert splits(StepShape(48, 48, 16), known) == 4
    assert splits(StepShape(64, 16, 16), known) == 8


def test_a_step_of_the_other_variant_is_none() -> None:
    rows, tiles = tuning(64, 17, splits=2), tuning(64, 16, splits=4)

    assert splits(StepShape(65, 17, 16), [rows, tiles]) == 2
    assert splits(StepShape(68, 17, 16), [rows, tiles]) == 4


@pytest.mark.parametrize("step", [StepShape(129, 129, 16), StepShape(63, 31, 16), StepShape(64, 64, 33)])
def test_beyond_twice_its_size_a_measurement_says_nothing(step: StepShape) -> None:
    known = [tuning(64, 64, splits=1)]

    assert forms_for(step, known, SHAPES, PROCESSORS) == default_forms(step, SHAPES.groups, 256, PROCESSORS)
    assert splits(StepShape(128, 128, 32), known) == 1


def test_what_was_measured_of_attention_is_passed_over() -> None:
    assert splits(StepShape(8, 8, 16), [attention_tuning(), tuning(8, 8, splits=2)]) == 2


def test_of_one_step_the_first_that_is_known_decides() -> None:
    assert splits(StepShape(8, 8, 16), [tuning(8, 8, splits=2), tuning(8, 8, splits=4)]) == 2


@pytest.mark.parametrize(
    "other",
    [
        replace(SHAPES, dtype="float16"),
        replace(SHAPES, weights="fp8"),
        replace(SHAPES, grain=128),
        replace(SHAPES, groups={"o": SHAPES.groups["o"]}),
    ],
)
def test_another_models_measurements_are_not_its_own(other: ModelShapes) -> None:
    step = StepShape(8, 8, 16)
    assert default_forms(step, other.groups, other.grain, PROCESSORS).configs["o"].splits != 1

    assert splits(step, [tuning(8, 8, splits=1)], other) != 1


def test_what_was_looked_up_is_remembered() -> None:
    forms = TunedForms([tuning(8, 8, splits=2)], SHAPES, PROCESSORS)

    assert forms(StepShape(9, 9, 16)) is forms(StepShape(9, 9, 16))
    assert forms(StepShape(9, 9, 16)) == forms_for(StepShape(9, 9, 16), [tuning(8, 8, splits=2)], SHAPES, PROCESSORS)


def test_a_tuning_without_a_group_or_by_the_other_variant_is_refused() -> None:
    whole = tuning(8, 8)

    with pytest.raises(ValueError, match=r"forms of \['o'\], of a model with \['o', 'qkv'\]"):
        replace(whole, found={"o": whole.found["o"]})
    with pytest.raises(ValueError, match="goes by the other variant"):
        replace(whole, step=StepShape(8, 2, 16))


_STEPS = st.builds(
    lambda rows, share, rank: StepShape(rows, max(1, int(rows * share)), rank),
    st.integers(1, 4096), st.floats(0, 1), st.integers(1, 256),
)  # fmt: skip


@settings(max_examples=200)
@given(
    step=_STEPS, known=st.lists(st.tuples(_STEPS, st.sampled_from(SPLITS)), max_size=12),
    grain=st.sampled_from((16, 32, 64, 128, 256)),
)  # fmt: skip
def test_any_step_gets_forms_that_ship_and_share_its_work_items(
    step: StepShape, known: list[tuple[StepShape, int]], grain: int
) -> None:
    shapes = replace(SHAPES, grain=grain)
    tunings = [tuning(s.rows, s.segments, s.max_rank, splits=n, shapes=shapes) for s, n in known]

    forms = forms_for(step, tunings, shapes, PROCESSORS)

    assert forms.variant is variant_for(step.rows, step.segments)
    assert (forms.m == 1) == (forms.variant is Variant.ROWS)
    assert forms.configs.keys() == shapes.groups.keys()
    assert all(not why_not(config, grain) for config in forms.configs.values())


@pytest.mark.parametrize(("seqs", "tokens", "rank"), [(64, 512, 64), (1, 8, 1), (6, 24, 8), (256, 2048, 128)])
def test_all_decode_steps_of_an_engine_are_near_one_that_is_tuned(seqs: int, tokens: int, rank: int) -> None:
    known = [tuning(s.rows, s.segments, s.max_rank, splits=1) for s in steps_to_tune(seqs, tokens, rank)]

    for rows in range(1, seqs + 1):
        assert splits(StepShape(rows, rows, rank), known) == 1
        if rows >= 4:
            assert splits(StepShape(rows, rows // 4, rank), known) == 1


def test_steps_with_prompts_follow_and_nothing_is_tuned_for_no_rank() -> None:
    steps = steps_to_tune(64, 512, 64)

    assert steps[0] == StepShape(64, 64, 64)
    assert StepShape(512, 4, 16) in steps
    assert len(set(steps)) == len(steps)
    assert steps_to_tune(64, 512, 0) == []
