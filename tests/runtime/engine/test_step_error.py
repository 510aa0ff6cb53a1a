"""What is said of a step that failed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.step_error import described
from lorafleet_runtime.engine.step_plan import BASE, Plan, PlannedRow, RunStep
from lorafleet_runtime.errors import RankDied, StepFailed
from lorafleet_runtime.protocol import AddRequest, Sampling

CUDA = torch.device("cuda")
ILLEGAL = "CUDA error: an illegal memory access was encountered\nFor debugging consider CUDA_LAUNCH_BLOCKING=1\n"
STEP = RunStep(
    [
        PlannedRow(9, [1], True, 7, [1]),
        PlannedRow(9, [1, 2, 3], True, 7, [2], drafts=2),
        PlannedRow(4, [1], True, BASE, [3]),
        PlannedRow(0, [1] * 20, False, 8, [4, 5]),
    ],
    [(8, [6])], [],
)  # fmt: skip


def test_the_error_is_named_with_what_the_step_was_made_of_and_how_to_find_out_more() -> None:
    assert described(torch.AcceleratorError(ILLEGAL), STEP, 8, CUDA) == (
        "a step on cuda failed: AcceleratorError: CUDA error: an illegal memory access was encountered "
        "(it had 4 rows, 3 of them decoding, 25 tokens, 2 adapters, 1 of them being copied in, a graph of 8 rows); "
        "a GPU tells of an error late, so another step may be to blame: CUDA_LAUNCH_BLOCKING=1 in the replica's "
        "environment has it raised where it happens"
    )


def test_who_runs_out_of_memory_is_told_what_to_lower() -> None:
    said = described(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), STEP, 0, CUDA)
    assert "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. (it had 4 rows" in said
    assert said.endswith("no graph); lower --max-batched-tokens, --max-num-seqs or --memory")


def test_on_a_cpu_errors_come_when_they_happen_and_one_without_words_has_its_kind() -> None:
    one = RunStep(STEP.rows[:1], [], [])
    assert described(IndexError(), one, 0, torch.device("cpu")) == (
        "a step on cpu failed: IndexError (it had 1 row, 1 of them decoding, 1 token, 1 adapter, "
        "0 of them being copied in, no graph)"
    )


@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize(("raised", "seen", "says"), [
    (torch.AcceleratorError(ILLEGAL), StepFailed, "^a step on cpu failed: AcceleratorError: CUDA error"),
    (RankDied("rank 1 of 2 is gone"), RankDied, "^rank 1 of 2 is gone$"),
])  # fmt: skip
def test_an_engine_raises_it_from_the_step(
    make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, overlap: str, raised: Exception,
    seen: type[Exception], says: str,
) -> None:  # fmt: skip
    engine = make(100, overlap=overlap)

    def broken(plan: Plan) -> None:
        raise raised

    monkeypatch.setattr(engine._runner, "launch", broken)
    engine.handle(AddRequest("r", [1, 2, 3], Sampling(max_tokens=4)))
    with pytest.raises(seen, match=says):
        for _ in range(3):
            engine.step()
