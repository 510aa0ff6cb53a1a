"""Decode steps over the memory of captured graphs say what steps say that are laid out anew."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lorafleet_kernels.gpu.attention.plan import DoesNotFit
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.gpu import runner as runner_module
from lorafleet_runtime.engine.gpu.graphs import Captures, DecodeGraph, sizes_up_to
from lorafleet_runtime.engine.gpu.runner import GpuRunner
from lorafleet_runtime.engine.step_plan import RunStep
from lorafleet_runtime.engine.transfers import Sending
from lorafleet_runtime.protocol import AddRequest, Sampling
from tests.runtime.engine.gpu.traffic import serve


@pytest.mark.interpreted
@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")
@pytest.mark.parametrize(("overlap", "dependent"), [("off", ""), ("on", "1")])
def test_decode_steps_that_are_replayed_over_the_same_memory_give_the_same_tokens(
    make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, overlap: str, dependent: str
) -> None:
    """What the rows beyond a step's compute, on whatever memory held, is nobody's: numpy may say that it overflows.
    With steps that overlap, tokens go from one to the next on the device, unseen by the host. Kernels that start early
    read nothing early that a step was not told."""
    expected = serve(make("reference"))
    monkeypatch.setenv("LORAFLEET_DEPENDENT_LAUNCHES", dependent)
    engine = make("triton", overlap=overlap)
    runner = engine._runner
    assert isinstance(runner, GpuRunner)
    assert runner._ops.dependent is bool(dependent)
    replays: list[Callable[[], torch.Tensor]] = []
    unseen: list[int] = []
    take = runner_module.standing_tokens

    def standing(step: RunStep) -> list[int]:
        unseen.extend(token for token in take(step) if token < 0)
        return take(step)

    def poisoned(sending: Sending) -> NDArray[np.int32]:
        """Nobody reads what the step did not write."""
        memory = turn(sending)
        memory[:] = 2**30
        return memory

    turn = Sending.next
    monkeypatch.setattr(Sending, "next", poisoned)
    monkeypatch.setattr(runner_module, "standing_tokens", standing)

    def capture(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """As a graph does, but anew every time: always over the same buffers."""

        def replay() -> torch.Tensor:
            replays.append(step)
            return step()

        return Captures()(step) if torch.cuda.is_available() else replay

    runner.use_graphs(6, 8, capture)

    assert serve(engine) == expected
    assert torch.cuda.is_available() or len(set(replays)) > 1
    assert bool(unseen) is (overlap == "on")


@pytest.mark.interpreted
def test_more_references_to_shared_pages_than_a_graph_has_room_for_are_computed_without_it(
    make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = []

    def run(graph: DecodeGraph, *step: object) -> torch.Tensor:
        fits.append(graph)
        raise DoesNotFit

    monkeypatch.setattr(DecodeGraph, "run", run)
    outputs = []
    for kernels in ("reference", "triton"):
        engine = make(kernels)
        if isinstance(engine._runner, GpuRunner):
            engine._runner.use_graphs(6, 8, lambda step: step)
        engine.handle(AddRequest("1", [5, 7, 9], Sampling(max_tokens=3, temperature=0), "mlp"))
        outputs.append([token for _ in range(4) for delta in engine.step() for token in delta.token_ids])

    assert outputs[0] == outputs[1]
    assert (len(outputs[0]), len(fits)) == (3, 2)


def test_there_is_a_graph_for_every_number_of_rows_and_few_rows_are_computed_in_vain() -> None:
    for most in (1, 2, 3, 6, 8, 64, 100, 256):
        sizes = sizes_up_to(most)
        assert sizes[-1] == most
        assert list(sizes) == sorted(set(sizes))
        for rows in range(1, most + 1):
            size = next(size for size in sizes if size >= rows)
            assert size - rows < max(rows, 2)
            assert rows < 64 or size - rows < 16
