"""The fastest form wins if it is right, and only by more than noise; the search ends with its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

import pytest
import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from lorafleet_kernels.gpu.forms.lora import GroupShape, LoraConfig, StepShape, Variant
from lorafleet_kernels.gpu.forms.step import default_forms, why_not
from lorafleet_kernels.gpu.tuning.clock import REPEATS
from lorafleet_kernels.gpu.tuning.lookup import Tuning
from lorafleet_kernels.gpu.tuning.search import (
    Budget,
    OutOfTime,
    agrees,
    candidates,
    fastest,
    heights,
    tune_step,
)
from tests.kernels.gpu.tuning.tunings import SHAPES

PROCESSORS = 132
QKV, O = SHAPES.groups["qkv"], SHAPES.groups["o"]  # noqa: E741
RIGHT = torch.tensor([1.0, -3.0, 0.5])
Judge = Callable[[LoraConfig], float]


class Bench:
    """Forms that take what `seconds` says, and whose results are wrong where `wrong` says so. Keeps what was timed."""

    copies = 2

    def __init__(self, seconds: Judge, wrong: Callable[[LoraConfig], bool] = lambda config: False) -> None:
        self.seconds, self.wrong = seconds, wrong
        self.too_large: Callable[[LoraConfig], bool] = lambda config: False
        self.timed: list[tuple[LoraConfig, int]] = []
        self._running: LoraConfig | None = None

    def run(self, config: LoraConfig) -> Callable[[], None]:
        def run() -> None:
            self._running = config

        return run

    def result(self, config: LoraConfig) -> Tensor:
        if self.too_large(config):
            raise OutOfResources(240000, 101376, "shared memory")
        return RIGHT + 1 if self.wrong(config) else RIGHT

    def clock(self, run: Callable[[], None], calls: int, /, repeats: int = REPEATS) -> float:
        assert calls == self.copies
        run()
        assert self._running is not None
        self.timed.append((self._running, repeats))
        return self.seconds(self._running)

    def tune(self, step: StepShape, say: Callable[[str], None] = print, budget: Budget | None = None) -> Tuning:
        return tune_step(step, SHAPES, PROCESSORS, lambda group: self, self.clock, budget or endless(), say)


def endless() -> Budget:
    return Budget(1.0, lambda: 0.0)


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
        bench = Bench(lambda config, wanted=wanted: 1.0 if config == wanted else 2.0)  # type: ignore[misc]

        found = bench.tune(step)

        assert found.found["o"].config == wanted
        assert found.found["o"].default_seconds / found.found["o"].seconds == (2 if wanted != default(step) else 1)


def test_a_form_that_is_faster_and_wrong_never_wins() -> None:
    step, said = StepShape(64, 64, 16), list[str]()
    bench = Bench(lambda config: 1 / config.splits, lambda config: config.splits == 16 and config != default(step))
    assert default(step).splits < 16

    found = bench.tune(step, said.append)

    assert [f.config.splits for f in found.found.values()] == [8, 8]
    assert found.found["qkv"].default_seconds > found.found["qkv"].seconds
    assert all(config.splits < 16 for config, _ in bench.timed)
    assert any("o: left out, its result is wrong: rows shrink 1x16x128" in line for line in said)


def test_a_form_that_this_card_cannot_hold_is_left_out_by_name() -> None:
    step, said = StepShape(64, 4, 64), list[str]()
    bench = Bench(lambda config: 1.0)
    bench.too_large = lambda config: config.shrink.n == 32

    bench.tune(step, said.append)

    assert all(config.shrink.n != 32 for config, _ in bench.timed)
    assert any("left out, OutOfResources: out of resource: shared memory" in line for line in said)


def test_a_default_that_does_not_run_ends_the_step() -> None:
    bench = Bench(lambda config: 1.0)
    bench.too_large = lambda config: True

    with pytest.raises(ValueError, match="qkv: the default form does not run on this card"):
        bench.tune(StepShape(64, 4, 64))


def test_what_gains_less_than_noise_stays_the_default() -> None:
    step = StepShape(512, 4, 64)
    usual = default_forms(step, SHAPES.groups, 256, PROCESSORS)
    bench = Bench(lambda config: 1.0 if config in usual.configs.values() else 0.98)

    found = bench.tune(step)

    assert found.forms == usual
    assert found.seconds == found.default_seconds == 2.0


def test_all_groups_have_the_height_that_is_best_for_their_sum() -> None:
    step = StepShape(512, 4, 64)

    def seconds(config: LoraConfig) -> float:
        return {16: 3.0, 64: 1.0, 128: 2.0}[config.shrink.m]

    found = Bench(seconds).tune(step)

    assert found.forms.m == 64
    assert [f.default_seconds for f in found.found.values()] == [2.0, 2.0]


def _of(name: str, step: StepShape) -> LoraConfig:
    return default_forms(step, SHAPES.groups, 256, PROCESSORS).configs[name]


def test_rough_times_thin_the_field_before_fine_ones() -> None:
    step = StepShape(64, 4, 64)
    forms = candidates(step, QKV, _of("qkv", step), 16)
    order = {config: float(rank) for rank, config in enumerate(reversed(forms), 1)}
    bench = Bench(order.__getitem__)

    last = fastest(forms, forms[0], bench, bench.clock, endless())

    fine = [config for config, repeats in bench.timed if repeats == REPEATS]
    assert len([1 for _, repeats in bench.timed if repeats == 1]) == len(forms) > 30
    assert len(fine) <= 6
    assert min(last, key=last.__getitem__) == forms[-1]
    assert forms[0] in last  # the slowest, and the default


def _ticking(seconds: Iterator[int]) -> Callable[[], float]:
    return lambda: float(next(seconds))


@pytest.mark.parametrize("seconds", [1, 5, 20])
def test_the_search_ends_with_its_time(seconds: int) -> None:
    bench = Bench(lambda config: 1.0)

    with pytest.raises(OutOfTime):
        bench.tune(StepShape(64, 4, 64), budget=Budget(seconds, _ticking(count())))

    assert len(bench.timed) < seconds


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_agrees_and_another_value_does_not(dtype: torch.dtype) -> None:
    expected = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    unit = torch.finfo(dtype).eps

    assert agrees((expected.double() * (1 + unit)).to(dtype), expected)
    assert not agrees(expected * (1 + 16 * unit) + 1e-2, expected)
    broken = expected.clone()
    broken[3, 5] = float("nan")
    assert not agrees(broken, expected)
    assert not agrees(broken, broken)


def test_a_wrong_default_is_noticed() -> None:
    bench = Bench(lambda config: 1.0)
    bench.result = lambda config: RIGHT * float("nan")  # type: ignore[method-assign]

    with pytest.raises(ValueError, match="is no number"):
        bench.tune(StepShape(64, 64, 16))


def test_forms_of_rows_are_of_one_row() -> None:
    step = StepShape(8, 8, 16)
    assert {replace(f, splits=1, lanes=1).variant for f in candidates(step, O, default(step), 1)} == {Variant.ROWS}
