"""What broke in a step, in one sentence for the person who has to find out: the error, and what the step was made of.

After an error of CUDA the device answers nothing more in this process, so whatever a step raises ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from lorafleet_runtime.engine.runner import Runner
from lorafleet_runtime.engine.sampling.sampler import Sampled
from lorafleet_runtime.engine.step_plan import BASE, Plan, RunStep
from lorafleet_runtime.errors import RankDied, StepFailed

LATE = (
    "a GPU tells of an error late, so another step may be to blame: CUDA_LAUNCH_BLOCKING=1 in the replica's "
    "environment has it raised where it happens"
)
TOO_LARGE = "lower --max-batched-tokens, --max-num-seqs or --memory"


def launch_step(runner: Runner, plan: Plan) -> Callable[[], list[Sampled]]:
    """`runner.launch`. It and its result raise StepFailed for whatever the runner raises; RankDied, which has its
    reason, as it is."""
    with _named(runner, plan.step):
        samples = runner.launch(plan)

    def wait() -> list[Sampled]:
        with _named(runner, plan.step):
            return samples()

    return wait


@contextmanager
def _named(runner: Runner, step: RunStep) -> Iterator[None]:
    try:
        yield
    except RankDied:
        raise
    except Exception as error:
        raise StepFailed(described(error, step, runner.graph_rows(step), runner.device)) from error


def described(error: Exception, step: RunStep, graph_rows: int, device: torch.device) -> str:
    """The sentence. `graph_rows`: of the captured graph that the step runs in, 0 for none."""
    text = f"{error}".strip().splitlines()
    said = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    hint = ""
    if isinstance(error, torch.OutOfMemoryError):
        hint = TOO_LARGE
    elif device.type == "cuda" or "CUDA error" in said:
        hint = LATE
    shape = [
        _count(len(step.rows), "row"),
        f"{sum(row.decodes for row in step.rows)} of them decoding",
        _count(sum(len(row.tokens) for row in step.rows), "token"),
        _count(len({row.adapter for row in step.rows} - {BASE}), "adapter"),
        f"{len(step.uploads)} of them being copied in",
        f"a graph of {graph_rows} rows" if graph_rows else "no graph",
    ]
    return f"a step on {device.type} failed: {said} (it had {', '.join(shape)})" + (f"; {hint}" if hint else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
