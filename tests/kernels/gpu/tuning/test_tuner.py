"""The tuner on real kernels: in Triton's interpreter on narrow layers, by a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lorafleet_kernels.gpu.forms.lora import GroupShape, LoraConfig, StepShape
from lorafleet_kernels.gpu.forms.step import default_forms
from lorafleet_kernels.gpu.lora.step import LoraStep
from lorafleet_kernels.gpu.tuning import work as work_module
from lorafleet_kernels.gpu.tuning.lookup import ModelShapes
from lorafleet_kernels.gpu.tuning.search import Budget, agrees, candidates
from lorafleet_kernels.gpu.tuning.tuner import Stand, tuned
from lorafleet_kernels.gpu.tuning.work import GroupWork
from lorafleet_kernels.reference import LoraPart, lora_segment

pytestmark = pytest.mark.interpreted

GROUP = GroupShape(32, (32, 16, 16))
ROWS, TILES = StepShape(2, 2, 3), StepShape(4, 1, 6)
GRAIN, PAGE, PROCESSORS = 16, 64, 4


def work(step: StepShape, dtype: torch.dtype, device: torch.device) -> GroupWork:
    return GroupWork(step, GROUP, dtype, GRAIN, PAGE, device, cache=1)


def default(step: StepShape) -> LoraConfig:
    return default_forms(step, {"o": GROUP}, GRAIN, PROCESSORS).configs["o"]


def expected(of: GroupWork, step: StepShape) -> torch.Tensor:
    """`[T, O]` float64, by the specification, from the pages."""
    y = of._start.double().cpu()
    slices, elements = work_module._plan(GROUP, step.max_rank, GRAIN)
    for begin, end, adapter in work_module._segments(step):
        vector = of._pool[0].double().cpu()[torch.from_numpy(of._places[adapter].pages).long()].flatten()[:elements]
        a = vector[: slices[0].b].view(3 * step.max_rank, GROUP.k)
        parts = [
            LoraPart(s.begin, s.begin + width, vector[s.b : s.b + s.rank * width].view(s.rank, width))
            for s, width in zip(slices, GROUP.widths, strict=True)
        ]
        lora_segment(y[begin:end], of._x[0, begin:end].double().cpu(), a, parts)
    return y


@pytest.mark.parametrize("step", [ROWS, TILES])
def test_what_is_timed_is_what_the_specification_says(step: StepShape, device: torch.device) -> None:
    made = work(step, torch.float32, device)

    assert agrees(made.result(default(step)), expected(made, step).to(torch.float32).to(device))
    assert made.copies == 2


@pytest.mark.parametrize("apart", [False, True], ids=["in the next kernel", "apart"])
def test_every_candidate_is_right(apart: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "FUSED_ROWS", 0 if apart else 128)
    for step in (ROWS, TILES):
        made = work(step, torch.float32, device)
        forms = candidates(step, GROUP, default(step), default(step).shrink.m)
        assert len(forms) > 1
        for form in forms:
            assert agrees(made.result(form), expected(made, step).to(torch.float32).to(device)), form


def test_a_plane_that_nobody_wrote_shows(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    made = work(ROWS, torch.float32, device)
    one_split = replace(default(ROWS), splits=1)
    right = made.result(one_split)
    shrink = LoraStep.shrink

    def forgets(self: LoraStep, layer: int, group: str, x: torch.Tensor) -> None:
        shrink(self, layer, group, x)
        self._scratch.planes[:1] = float("nan")

    monkeypatch.setattr(LoraStep, "shrink", forgets)

    assert not agrees(made.result(one_split), right)


def test_a_model_is_tuned_step_by_step_until_the_time_is_over(device: torch.device) -> None:
    shapes = ModelShapes({"qkv": GROUP, "o": GroupShape(32, (16,))}, "bfloat16", GRAIN)
    timed: list[int] = []

    def clock(run: Callable[[], None], calls: int, /, repeats: int = 7) -> float:
        run()
        timed.append(calls)
        return 1e-3 / len(timed)  # whatever comes later is faster

    budget = Budget(1.0, lambda: 2.0 if len(timed) > 10 else 0.0)
    stand = Stand(device, PROCESSORS, 1, clock)

    found = list(tuned([ROWS, StepShape(1, 1, 3)] * 4, shapes, PAGE, stand, budget, print))

    assert 2 <= len(found) < 8
    assert [t.step for t in found[:2]] == [ROWS, StepShape(1, 1, 3)]
    assert all(f.seconds <= f.default_seconds for t in found for f in t.found.values())
    assert any(f.seconds < f.default_seconds for t in found for f in t.found.values())


def test_a_step_that_does_not_fit_into_the_memory_ends_no_other(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, said = ModelShapes({"o": GroupShape(32, (16,))}, "float32", GRAIN), list[str]()
    stand = Stand(device, PROCESSORS, 1, lambda run, calls, repeats=7: 1.0)

    def fails(self: GroupWork, config: LoraConfig) -> torch.Tensor:
        if self._step == ROWS:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.ones(3)

    monkeypatch.setattr(GroupWork, "result", fails)

    found = list(tuned([ROWS, TILES], shapes, PAGE, stand, Budget(1.0, lambda: 0.0), said.append))

    assert [t.step for t in found] == [TILES]
    assert said == ["2 rows, 2 segments, rank 3: left out: this card's memory does not hold it"]
