"""Tunes one thing after the other on this card, as far as the time goes."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from lorafleet_kernels.gpu.tuning.document import Tuning
from lorafleet_kernels.gpu.tuning.search import Budget, OutOfTime, Say
from lorafleet_kernels.gpu.tuning.stand import Stand
from lorafleet_kernels.gpu.tuning.tasks import Task


def tuned(tasks: Sequence[Task], stand: Stand, budget: Budget, say: Say) -> Iterator[tuple[Task, Tuning]]:
    """In this order, until all are done or the time is over; what is begun then is dropped. What cannot be tuned is
    said, and ends no other."""
    for task in tasks:
        try:
            yield task, task.tuned(stand, budget, partial(_say_of, say, task))
        except OutOfTime:
            return
        except torch.OutOfMemoryError:
            _say_of(say, task, "left out: this card's memory does not hold it")
        except ValueError as error:
            _say_of(say, task, f"left out: {error}")
        finally:
            gc.collect()
            if stand.device.type == "cuda":
                torch.cuda.empty_cache()


def _say_of(say: Say, task: Task, what: str) -> None:
    say(f"{task}: {what}")
