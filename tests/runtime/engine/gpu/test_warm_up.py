"""What any step will start has been started before the first request, and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_kernels.gpu.forms.lora import StepShape
from lorafleet_kernels.gpu.forms.step import StepForms, default_forms
from lorafleet_runtime.core.limits import Limits
from lorafleet_runtime.engine.gpu.graphs import sizes_up_to
from lorafleet_runtime.engine.gpu.runner import GpuRunner, group_shapes
from lorafleet_runtime.engine.gpu.warm_up import compiled_for, shapes_of_all_forms, warm_up
from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.tiny import random_weights, tiny_config

CONFIG = tiny_config("llama")
GROUPS = group_shapes(CONFIG)


def forms(shape: StepShape) -> StepForms:
    """Of a model whose rows begin at a grain of 128, on a card of 132 processors."""
    return default_forms(shape, GROUPS, 128, 132)


@given(st.data())
def test_every_step_finds_its_kernels_compiled(data: st.DataObject) -> None:
    max_rows, max_rank = data.draw(st.integers(1, 8192)), data.draw(st.integers(1, 256))
    rows, rank = data.draw(st.integers(1, max_rows)), data.draw(st.integers(1, max_rank))
    segments = data.draw(st.integers(1, rows))
    ready = {
        compiled
        for shape in shapes_of_all_forms(forms, max_rows, max_rank)
        for name, config in forms(shape).configs.items()
        for compiled in compiled_for(name, config)
    }

    for name, config in forms(StepShape(rows, segments, rank)).configs.items():
        assert set(compiled_for(name, config)) <= ready


def test_few_steps_are_enough_and_the_largest_comes_first() -> None:
    shapes = list(shapes_of_all_forms(forms, 8192, 256))

    assert shapes[0].rows == 8192
    assert len(shapes) < 24


def test_who_takes_no_adapters_has_nothing_of_theirs_compiled_or_captured(runner: GpuRunner) -> None:
    captured: dict[int, list[object]] = {0: [], 8: []}
    for rank, steps in captured.items():

        def capture(step: Callable[[], torch.Tensor], steps: list[object] = steps) -> Callable[[], torch.Tensor]:
            steps.append(step)
            return step

        runner.use_graphs(4, rank, capture)

    assert len(captured[0]) == len(sizes_up_to(4))
    assert len(captured[8]) == 3 * len(captured[0])
    assert not list(shapes_of_all_forms(forms, 64, 0))


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> GpuRunner:
    monkeypatch.setenv("LORAFLEET_KERNELS", "triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weights = {name: weight.to(device) for name, weight in random_weights(CONFIG, 0).items()}
    return GpuRunner(Decoder(CONFIG, weights, 64), 5)


@pytest.mark.interpreted
def test_steps_larger_than_a_sequence_and_than_the_pool_run_too(runner: GpuRunner) -> None:
    runner.model.join_layers()
    assert warm_up(runner, Limits(max_model_len=64, max_num_seqs=3, max_batched_tokens=100), 8) > 3


@pytest.mark.interpreted
def test_a_step_that_does_not_fit_is_refused_with_what_to_change(
    runner: GpuRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(*step: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(runner.model, "forward", forward)
    with pytest.raises(ConfigError, match=r"--max-batched-tokens 32 does not fit.*--memory.*20 GiB"):
        warm_up(runner, Limits(max_model_len=64, max_num_seqs=3, max_batched_tokens=32), 8)
