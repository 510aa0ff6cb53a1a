"""Tuning for a model: what its engine asks for is what is tuned, stored, and found at the next start."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.lora import StepShape
from lorafleet_kernels.gpu.forms.step import default_forms
from lorafleet_kernels.gpu.operations import TritonOperations
from lorafleet_kernels.gpu.tuning.document import Run
from lorafleet_kernels.gpu.tuning.lookup import Found, Tuning
from lorafleet_kernels.gpu.tuning.search import Budget
from lorafleet_kernels.gpu.tuning.store import load, store
from lorafleet_kernels.gpu.tuning.tuner import Stand
from lorafleet_runtime.cli import main
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.gpu.tune import Order, line_of, summary, tune_and_store, tune_at_start
from lorafleet_runtime.model.tiny import save_tiny_model, tiny_config

DECODER = tiny_config("qwen3")
CARD = Card.of(torch.device("cpu"))
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which this would tune")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineConfig:
    monkeypatch.setenv("LORAFLEET_TUNINGS", str(tmp_path / "tunings"))
    model = save_tiny_model(tmp_path / "model", DECODER, seed=4)
    return EngineConfig(
        str(model), "tiny", dtype="float32", max_num_seqs=2, max_batched_tokens=8, max_lora_rank=2, autotune=1
    )


def found_for(order: Order, *, splits: int) -> list[Tuning]:
    """Default forms with other splits, for every step."""
    shapes, tunings = order.shapes, []
    for step in order.steps:
        forms = default_forms(step, shapes.groups, shapes.grain, CARD.processors)
        found = {n: Found(replace(c, splits=splits), 1e-5, 2e-5) for n, c in forms.configs.items()}
        tunings.append(Tuning(shapes, step, found))
    return tunings


@pytest.mark.interpreted
def test_what_is_tuned_once_is_found_by_the_engine_and_not_tuned_again(config: EngineConfig, tmp_path: Path) -> None:
    order = Order.of(config, DECODER)
    assert order.steps == (StepShape(2, 2, 2), StepShape(1, 1, 2))
    timed, said = [], list[str]()

    def clock(run: Callable[[], None], calls: int, /, repeats: int = 7) -> float:
        timed.append(calls)
        return 1e-3 / len(timed)

    stand = Stand(torch.device("cpu"), CARD.processors, 1, clock)
    folder = tmp_path / "tunings"

    found = tune_and_store(order, CARD, stand, Budget(1.0, lambda: 0.0), folder, "the command", said.append)

    assert [(t.step, t.forms) for t in load(CARD, [folder])] == [(t.step, t.forms) for t in found]
    assert len(found) == 2
    assert order.without(load(CARD)).steps == ()
    forms = TritonOperations(torch.float32, torch.device("cpu")).lora_forms(
        order.shapes.groups, order.shapes.grain, torch.float32
    )
    assert [forms(t.step) for t in found] == [t.forms for t in found]
    assert '"command": "the command"' in (folder / "interpreted-4.json").read_text()
    assert said[-1] == f"stored in {folder / 'interpreted-4.json'}"
    assert "2 rows, 2 segments, rank 2" in said[-3]


def test_only_what_is_missing_is_left_to_tune(config: EngineConfig) -> None:
    order = Order.of(replace(config, max_num_seqs=32, max_batched_tokens=64), DECODER)
    decodes = found_for(order, splits=2)[:3]

    left = order.without(decodes)

    assert 0 < len(left.steps) < len(order.steps)
    assert not {t.step for t in decodes} & set(left.steps)
    assert order.without([]) == order


@pytest.mark.interpreted
def test_what_was_found_is_stored_even_if_the_tuner_is_interrupted(config: EngineConfig, tmp_path: Path) -> None:
    order, said = Order.of(config, DECODER), list[str]()
    calls = 0

    def clock(run: Callable[[], None], number: int, /, repeats: int = 7) -> float:
        nonlocal calls
        calls += 1
        if said:  # the first step is done
            raise KeyboardInterrupt
        return 1.0

    stand = Stand(torch.device("cpu"), CARD.processors, 1, clock)
    with pytest.raises(KeyboardInterrupt):
        tune_and_store(order, CARD, stand, Budget(1.0, lambda: 0.0), tmp_path, "c", said.append)

    assert [t.step for t in load(CARD, [tmp_path])] == [StepShape(2, 2, 2)]


def test_gains_are_told_by_step_and_in_all(config: EngineConfig) -> None:
    (first, second) = found_for(Order.of(config, DECODER), splits=2)
    slow = replace(second, found={n: replace(f, default_seconds=8e-5) for n, f in second.found.items()})

    assert "80.0 us ->      40.0 us   2.00 x   qkv 2.00  o 2.00  gate_up 2.00  down 2.00" in line_of(first)
    assert summary([first, slow], 5) == "2 of 5 steps: 4.000 times as fast as the default forms (geometric mean)"
    assert summary([], 5) == "none of 5 steps could be tuned"


@NO_GPU
def test_a_start_whose_tuner_fails_goes_on_and_says_why(config: EngineConfig) -> None:
    with capture_logs() as lines:
        tune_at_start(config, DECODER, CARD)

    (line,) = lines
    assert line["log_level"] == "warning"
    assert "torch sees no GPU" in line["reason"]


def test_a_start_with_nothing_to_tune_starts_no_tuner(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with capture_logs() as lines:
        tune_at_start(config, DECODER, CARD)
    assert "/nonexistent/python" in lines[0]["reason"]
    store(Run({}, tuple(found_for(Order.of(config, DECODER), splits=2))), CARD, Path(os.environ["LORAFLEET_TUNINGS"]))

    with capture_logs() as lines:
        tune_at_start(config, DECODER, CARD)

    assert not lines


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param([], "torch sees no GPU here, and only on one are its kernels timed", marks=NO_GPU),
        (["--seconds", "0"], "--seconds 0.0 must be more than 0"),
        (["--max-num-seqs", "0"], "--max-num-seqs 0 must be at least 1"),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    arguments: list[str], said: str, config: EngineConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tune", "--model", config.model, *arguments])

    assert ended.value.code == 2
    assert said in capsys.readouterr().err
