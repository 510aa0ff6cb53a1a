"""The tuner on real kernels: in Triton's interpreter on narrow layers, by a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.lora import GroupShape, LoraConfig, StepShape
from lorafleet_kernels.gpu.tuning.attention.lookup import AttentionTuning, Heads, Phase, Sequences
from lorafleet_kernels.gpu.tuning.lora.lookup import LoraTuning, ModelShapes
from lorafleet_kernels.gpu.tuning.lora.work import GroupWork
from lorafleet_kernels.gpu.tuning.search import Budget
from lorafleet_kernels.gpu.tuning.stand import Stand
from lorafleet_kernels.gpu.tuning.tasks import AttentionTask, Engine, LoraTask, Task, missing, tasks_for
from lorafleet_kernels.gpu.tuning.tuner import tuned
from tests.kernels.gpu.tuning.tunings import attention_tuning

PAGE = 64
ROWS, TILES = StepShape(2, 2, 3), StepShape(4, 1, 6)
SHAPES = ModelShapes(
    {"qkv": GroupShape(32, (32, 16, 16)), "o": GroupShape(32, (16,))}, "bfloat16", "bfloat16", 16
)  # fmt: skip
HEADS = Heads(2, 1, 16, "float32", "float32")
DECODES = AttentionTask(HEADS, Phase.DECODE, (Sequences(2, 1, 20), Sequences(1, 1, 5)))


def stand(device: torch.device, clock: Callable[..., float]) -> Stand:
    return Stand(device, Card.of(device), 1, clock)


@pytest.mark.interpreted
def test_tasks_are_tuned_one_by_one_until_the_time_is_over(device: torch.device) -> None:
    timed: list[int] = []

    def clock(run: Callable[[], None], calls: int, /, repeats: int = 7) -> float:
        run()
        timed.append(calls)
        return 1e-3 / len(timed)  # whatever comes later is faster

    budget = Budget(1.0, lambda: 2.0 if len(timed) > 70 else 0.0)
    tasks: list[Task] = [DECODES, LoraTask(SHAPES, ROWS, PAGE)]

    found = list(tuned(tasks * 4, stand(device, clock), budget, print))

    assert 2 <= len(found) < 8
    assert [task for task, _ in found[:2]] == tasks
    assert [type(tuning) for _, tuning in found[:2]] == [AttentionTuning, LoraTuning]
    assert all(tuning.seconds <= tuning.default_seconds for _, tuning in found)
    assert any(tuning.seconds < tuning.default_seconds for _, tuning in found)
    assert all(task.known([tuning]) for task, tuning in found)


@pytest.mark.interpreted
def test_a_task_that_does_not_fit_into_the_memory_ends_no_other(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def fails(self: GroupWork, config: LoraConfig) -> torch.Tensor:
        if self._step == ROWS:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.ones(3)

    monkeypatch.setattr(GroupWork, "result", fails)
    tasks = [LoraTask(SHAPES, step, PAGE) for step in (ROWS, TILES)]

    found = list(tuned(tasks, stand(device, lambda run, calls, repeats=7: 1.0), Budget(1.0, lambda: 0.0), said.append))

    assert [task for task, _ in found] == tasks[1:]
    assert said == ["2 rows, 2 segments, rank 3: left out: this card's memory does not hold it"]


def test_heads_that_the_kernels_do_not_know_are_left_out_by_name(device: torch.device) -> None:
    said: list[str] = []
    odd = replace(DECODES, heads=replace(HEADS, size=15))

    assert list(tuned([odd], stand(device, lambda run, calls, repeats=7: 1.0), Budget(1.0), said.append)) == []
    assert "attention, decode: left out: 2 heads over 1 of size 15: the kernels want an even size" in said[0]


def test_attention_comes_first_and_only_what_is_missing_is_left() -> None:
    tasks = tasks_for(Engine(4, 256, 8, 1024), SHAPES, PAGE, HEADS)

    assert [str(task) for task in tasks[:3]] == [
        "attention, decode", "attention, prompts", "4 rows, 4 segments, rank 8",
    ]  # fmt: skip
    assert missing(tasks, []) == tasks
    decodes, _ = HEADS.defaults((9, 0))
    assert missing(tasks, [attention_tuning(decodes, heads=HEADS)]) == tasks[1:]
    assert missing(tasks, [attention_tuning(decodes, heads=replace(HEADS, kv="fp8"))]) == tasks
