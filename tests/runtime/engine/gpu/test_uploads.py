"""An adapter's weights wait for the step before only where they come into pages that it reads or writes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lorafleet_runtime.engine.gpu.page_copies import PageCopies
from lorafleet_runtime.engine.gpu.runner import GpuRunner
from lorafleet_runtime.engine.pool import page_elements
from lorafleet_runtime.engine.step_plan import BASE, Plan, PlannedRow, RunStep
from lorafleet_runtime.model.adapter_weights import AdapterWeights, LoraPair
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.lora import PackedAdapter, grain_for, pack
from lorafleet_runtime.model.tiny import random_weights, tiny_config

CONFIG = tiny_config("llama")
ELEMENTS = page_elements(CONFIG.kv_dim, torch.float32, torch.float32)
PAGES = 200


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> GpuRunner:
    monkeypatch.setenv("LORAFLEET_KERNELS", "triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return GpuRunner(Decoder(CONFIG, {k: v.to(device) for k, v in random_weights(CONFIG, 0).items()}, 64), PAGES)


def packed(runner: GpuRunner) -> PackedAdapter:
    pairs = {}
    for layer in range(CONFIG.num_layers):
        out, k = CONFIG.linear_shape("v_proj")
        pairs[layer, "v_proj"] = LoraPair(torch.zeros(2, k), torch.zeros(out, 2))
    adapter = pack(AdapterWeights(2, pairs, ("v_proj",)), CONFIG, ELEMENTS, torch.float32, grain_for(CONFIG, ELEMENTS))
    runner._numbers[adapter.layout.signature] = 0
    return adapter


@pytest.mark.interpreted
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")  # of lanes that are masked
@pytest.mark.parametrize(("pages", "expected"), [
    (lambda rows, adapter, free: [free], False),
    (lambda rows, adapter, free: [rows], True),  # of a sequence that was preempted
    (lambda rows, adapter, free: [adapter], True),  # of an adapter that was evicted
])  # fmt: skip
def test_a_copy_waits_where_the_step_under_way_has_a_page_of_its_own(
    runner: GpuRunner, monkeypatch: pytest.MonkeyPatch, pages: Callable[[int, int, int], list[int]], expected: bool
) -> None:
    adapter = packed(runner)
    count = adapter.layout.pages
    mine, others = list(range(10, 10 + count)), list(range(60, 60 + count))
    rows = [PlannedRow(0, [1, 2], True, 1, [3]), PlannedRow(0, [4], True, BASE, [4])]
    runner.logits(Plan(RunStep(rows, [(1, mine)], []), (adapter,)))
    waits: list[bool] = []
    write = PageCopies.write

    def noted(copies: PageCopies, into: list[int], blob: torch.Tensor, *, read_now: bool) -> None:
        waits.append(read_now)
        write(copies, into, blob, read_now=read_now)

    monkeypatch.setattr(PageCopies, "write", noted)
    into = pages(4, mine[-1], 5) + others[1:]
    runner.logits(Plan(RunStep([PlannedRow(0, [1], True, 2, [6])], [(2, into)], [1]), (adapter,)))

    assert waits == [expected]
    assert 1 not in runner._pages_of
