"""What is timed of the LoRA kernels is what they compute: in Triton's interpreter, on narrow layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.lora import GroupShape, LoraConfig, StepShape
from lorafleet_kernels.gpu.forms.step import default_forms
from lorafleet_kernels.gpu.lora.step import LoraStep
from lorafleet_kernels.gpu.tuning.clock import replayed
from lorafleet_kernels.gpu.tuning.lora import work as work_module
from lorafleet_kernels.gpu.tuning.lora.lookup import ModelShapes
from lorafleet_kernels.gpu.tuning.lora.search import candidates
from lorafleet_kernels.gpu.tuning.lora.work import NOISE, GroupWork
from lorafleet_kernels.gpu.tuning.search import agrees
from lorafleet_kernels.gpu.tuning.stand import Stand
from lorafleet_kernels.reference import LoraPart, lora_segment

pytestmark = pytest.mark.interpreted

GROUP = GroupShape(32, (32, 16, 16))
ROWS, TILES = StepShape(2, 2, 3), StepShape(4, 1, 6)
GRAIN, PAGE, PROCESSORS = 16, 64, 4


def work(step: StepShape, device: torch.device, weights: str = "float32") -> GroupWork:
    stand = Stand(device, Card.of(device), 1, replayed)
    return GroupWork(step, GROUP, ModelShapes({"o": GROUP}, "float32", weights, GRAIN), PAGE, stand)


def default(step: StepShape) -> LoraConfig:
    return default_forms(step, {"o": GROUP}, GRAIN, PROCESSORS).configs["o"]


def expected(of: GroupWork, step: StepShape, fp8: bool = False) -> torch.Tensor:
    """`[T, O]`, by the specification in float64, from the pages."""
    y = of._start.double().cpu()
    slices, elements = work_module._plan(GROUP, step.max_rank, GRAIN, scales=fp8)
    pool = of._pool[0].cpu()
    for begin, end, adapter in work_module._segments(step):
        pages = torch.from_numpy(of._places[adapter].pages).long()
        stored = (pool.view(torch.uint8) if fp8 else pool)[pages].flatten()[:elements]
        ranks = len(GROUP.widths) * step.max_rank
        first, scales = slices[0].a, torch.ones(ranks)
        if fp8:
            scales, stored = stored[first - 4 * ranks : first].view(torch.float32), stored.view(torch.float8_e4m3fn)
        vector = stored.double()
        a = vector[first : first + ranks * GROUP.k].view(ranks, GROUP.k) * scales[:, None]
        parts = [
            LoraPart(s.begin, s.begin + width, vector[s.b : s.b + s.rank * width].view(s.rank, width))
            for s, width in zip(slices, GROUP.widths, strict=True)
        ]
        lora_segment(y[begin:end], of._x[0, begin:end].double().cpu(), a, parts)
    return y.to(torch.float32).to(of._y.device)


@pytest.mark.parametrize("step", [ROWS, TILES])
def test_what_is_timed_is_what_the_specification_says(step: StepShape, device: torch.device) -> None:
    made = work(step, device)

    assert agrees(made.result(default(step)), expected(made, step), NOISE)
    assert made.copies == 2


@pytest.mark.parametrize("step", [ROWS, TILES])
def test_over_adapters_in_fp8_every_ranks_scale_counts(step: StepShape, device: torch.device) -> None:
    made = work(step, device, "fp8")
    right = expected(made, step, fp8=True)

    assert agrees(made.result(default(step)), right, NOISE)
    for form in candidates(step, GROUP, default(step), default(step).shrink.m):
        assert agrees(made.result(form), right, NOISE), form
    moved = made._start.abs().max()
    assert float((right - made._start).abs().max()) > 0.1 * float(moved)  # adapters that do nothing prove nothing


@pytest.mark.parametrize("apart", [False, True], ids=["in the next kernel", "apart"])
def test_every_candidate_is_right(apart: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "FUSED_ROWS", 0 if apart else 128)
    for step in (ROWS, TILES):
        made = work(step, device)
        forms = candidates(step, GROUP, default(step), default(step).shrink.m)
        assert len(forms) > 1
        for form in forms:
            assert agrees(made.result(form), expected(made, step), NOISE), form


def test_a_plane_that_nobody_wrote_shows(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    made = work(ROWS, device)
    one_split = replace(default(ROWS), splits=1)
    right = made.result(one_split)
    shrink = LoraStep.shrink

    def forgets(self: LoraStep, layer: int, group: str, x: torch.Tensor) -> None:
        shrink(self, layer, group, x)
        self._scratch.planes[:1] = float("nan")

    monkeypatch.setattr(LoraStep, "shrink", forgets)

    assert not agrees(made.result(one_split), right, NOISE)
