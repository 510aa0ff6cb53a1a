"""Tunes the steps of one model on this card, as far as the time goes."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from lorafleet_kernels.gpu.forms.lora import GroupShape, StepShape
from lorafleet_kernels.gpu.tuning.clock import Timer, replayed
from lorafleet_kernels.gpu.tuning.lookup import ModelShapes, Tuning
from lorafleet_kernels.gpu.tuning.search import Budget, OutOfTime, Say, tune_step
from lorafleet_kernels.gpu.tuning.work import GroupWork

DEFAULT_L2 = 64 << 20


@dataclass(frozen=True, slots=True)
class Stand:
    """Where forms are tried, and how they are timed; `cache`: bytes of L2."""

    device: torch.device
    processors: int
    cache: int
    timer: Timer

    @classmethod
    def here(cls) -> Stand:
        """The current CUDA device."""
        device = torch.device("cuda", torch.cuda.current_device())
        found = torch.cuda.get_device_properties(device)
        cache = getattr(found, "L2_cache_size", DEFAULT_L2) or DEFAULT_L2
        return cls(device, found.multi_processor_count, cache, replayed)


def tuned(
    steps: Sequence[StepShape], shapes: ModelShapes, page: int, stand: Stand, budget: Budget, say: Say
) -> Iterator[Tuning]:
    """Steps in this order, until all are done or the time is over; a step that is begun then is dropped. `page`:
    elements of a pool page. What cannot be tuned is said, and ends no other."""
    dtype: torch.dtype = getattr(torch, shapes.dtype)
    for step in steps:
        try:
            yield tune_step(step, shapes, stand.processors, partial(_work, step, dtype, shapes.grain, page, stand),
                            stand.timer, budget, partial(_say_of, say, step))  # fmt: skip
        except OutOfTime:
            return
        except torch.OutOfMemoryError:
            _say_of(say, step, "left out: this card's memory does not hold it")
        except ValueError as error:
            _say_of(say, step, f"left out: {error}")
        finally:
            gc.collect()
            if stand.device.type == "cuda":
                torch.cuda.empty_cache()


def described(step: StepShape) -> str:
    """A step's shape in words."""
    return f"{step.rows} rows, {step.segments} segments, rank {step.max_rank}"


def _work(step: StepShape, dtype: torch.dtype, grain: int, page: int, stand: Stand, group: GroupShape) -> GroupWork:
    return GroupWork(step, group, dtype, grain, page, stand.device, stand.cache)


def _say_of(say: Say, step: StepShape, what: str) -> None:
    say(f"{described(step)}: {what}")
