"""Of a step's groups the fastest form wins if it is right, at one height of tiles for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

import pytest

from lorafleet_kernels.gpu.forms.lora import GroupShape, LoraConfig, StepShape, Variant
from lorafleet_kernels.gpu.forms.step import default_forms, why_not
from lorafleet_kernels.gpu.tuning.lora.lookup import LoraTuning
from lorafleet_kernels.gpu.tuning.lora.search import candidates, heights, tune_step
from lorafleet_kernels.gpu.tuning.search import Budget, OutOfTime
from tests.kernels.gpu.tuning.tunings import SHAPES
from tests.kernels.gpu.tuning.virtual import RIGHT, Bench, endless

PROCESSORS = 132
QKV, O = SHAPES.groups["qkv"], SHAPES.groups["o"]  # noqa: E741


class StepBench(Bench[LoraConfig]):
    """Both groups of a step."""

    def tune(self, step: StepShape, say: Callable[[str], None] = print, budget: Budget | None = None) -> LoraTuning:
        return tune_step(step, SHAPES, PROCESSORS, lambda group: self, self.clock, budget or endless(), say)


def default(step: StepShape) -> LoraConfig:
    return default_forms(step, {"o": O}, 256, PROCESSORS).configs["o"]


STEPS = [StepShape(8, 8, 16), StepShape(64, 16, 64), StepShape(512, 4, 64), StepShape(2048, 1, 16)]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("group", [QKV, O])
def test_only_what_ships_is_tried_each_once_and_the_default_first(step: StepShape, group: GroupShape) -> None:
    chosen = default_forms(step, {"g": group}, 256, PROCESSORS).configs["g"]
    for m in heights(step, chosen.shrink.m):
        forms = candidates(step, group, chosen, m)
        assert len(set(forms)) == len(forms) > 1
        assert all((f.variant, f.shrink.m, f.expand.m) == (chosen.variant, m, m) for f in forms)
        assert not any(why_not(form, 256) for form in forms)
        assert (forms[0] == chosen) == (m == chosen.shrink.m)


def test_tiles_of_mostly_padding_are_not_tried_and_long_segments_try_every_height() -> None:
    assert heights(StepShape(64, 16, 16), 16) == [16]
    assert heights(StepShape(512, 4, 16), 128) == [16, 64, 128]
    assert heights(StepShape(64, 64, 16), 1) == [1]


def test_where_the_expand_is_the_next_kernels_no_other_is_tried() -> None:
    small, large = StepShape(128, 4, 64), StepShape(512, 16, 64)

    assert len({f.expand for f in candidates(small, O, default(small), 16)}) == 1
    assert len({f.expand for f in candidates(large, O, default(large), 16)}) == 2


@pytest.mark.parametrize("grain", [16, 64])
def test_a_small_grain_has_tiles_of_its_own(grain: int) -> None:
    step = StepShape(512, 4, 16)
    config = default_forms(step, {"o": O}, grain, PROCESSORS).configs["o"]

    forms = [f for m in heights(step, 16) for f in candidates(step, O, config, m)]

    assert {f.shrink for f in forms} == {config.shrink}
    assert not any(why_not(form, grain) for form in forms)


def test_the_fastest_form_is_found_whichever_it_is() -> None:
    step = StepShape(512, 16, 64)
    for wanted in candidates(step, O, default(step), 64)[::7]:
        bench = StepBench(lambda config, wanted=wanted: 1.0 if config == wanted else 2.0)  # type: ignore[misc]

        found = bench.tune(step)

        assert found.found["o"].config == wanted
        assert found.found["o"].default_seconds / found.found["o"].seconds == (2 if wanted != default(step) else 1)


def test_a_form_that_is_faster_and_wrong_never_wins() -> None:
    step, said = StepShape(64, 64, 16), list[str]()
    bench = StepBench(lambda config: 1 / config.splits, lambda config: config.splits == 16 and config != default(step))
    assert default(step).splits < 16

    found = bench.tune(step, said.append)

    assert [f.config.splits for f in found.found.values()] == [8, 8]
    assert found.found["qkv"].default_seconds > found.found["qkv"].seconds
    assert all(config.splits < 16 for config, _ in bench.timed)
    assert any("o: left out, its result is wrong: rows shrink 1x16x128" in line for line in said)


def test_a_form_that_this_card_cannot_hold_is_left_out_by_name() -> None:
    step, said = StepShape(64, 4, 64), list[str]()
    bench = StepBench(lambda config: 1.0)
    bench.too_large = lambda config: config.shrink.n == 32

    bench.tune(step, said.append)

    assert all(config.shrink.n != 32 for config, _ in bench.timed)
    assert any("left out, OutOfResources: out of resource: shared memory" in line for line in said)


def test_a_default_that_does_not_run_ends_the_step() -> None:
    bench = StepBench(lambda config: 1.0)
    bench.too_large = lambda config: True

    with pytest.raises(ValueError, match="qkv: the default form does not run on this card"):
        bench.tune(StepShape(64, 4, 64))


def test_what_gains_less_than_noise_stays_the_default() -> None:
    step = StepShape(512, 4, 64)
    usual = default_forms(step, SHAPES.groups, 256, PROCESSORS)
    bench = StepBench(lambda config: 1.0 if config in usual.configs.values() else 0.98)

    found = bench.tune(step)

    assert found.forms == usual
    assert found.seconds == found.default_seconds == 2.0


def test_all_groups_have_the_height_that_is_best_for_their_sum() -> None:
    step = StepShape(512, 4, 64)

    def seconds(config: LoraConfig) -> float:
        return {16: 3.0, 64: 1.0, 128: 2.0}[config.shrink.m]

    found = StepBench(seconds).tune(step)

    assert found.forms.m == 64
    assert [f.default_seconds for f in found.found.values()] == [2.0, 2.0]


def _ticking(seconds: Iterator[int]) -> Callable[[], float]:
    return lambda: float(next(seconds))


@pytest.mark.parametrize("seconds", [1, 5, 20])
def test_the_search_ends_with_its_time(seconds: int) -> None:
    bench = StepBench(lambda config: 1.0)

    with pytest.raises(OutOfTime):
        bench.tune(StepShape(64, 4, 64), budget=Budget(seconds, _ticking(count())))

    assert len(bench.timed) < seconds


def test_a_wrong_default_is_noticed() -> None:
    bench = StepBench(lambda config: 1.0)
    bench.result = lambda form: RIGHT * float("nan")  # type: ignore[method-assign]

    with pytest.raises(ValueError, match="is no number"):
        bench.tune(StepShape(64, 64, 16))


def test_forms_of_rows_are_of_one_row() -> None:
    step = StepShape(8, 8, 16)
    assert {replace(f, splits=1, lanes=1).variant for f in candidates(step, O, default(step), 1)} == {Variant.ROWS}
