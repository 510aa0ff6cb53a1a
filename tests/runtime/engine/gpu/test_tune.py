"""Tuning for a model: what its engine asks for is what is tuned, stored, and found at the next start."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.lora import StepShape
from lorafleet_kernels.gpu.forms.step import default_forms
from lorafleet_kernels.gpu.operations import TritonOperations
from lorafleet_kernels.gpu.tuning.attention.lookup import AttentionTuning, Measured
from lorafleet_kernels.gpu.tuning.document import Run, Tuning
from lorafleet_kernels.gpu.tuning.lora.lookup import Found, LoraTuning
from lorafleet_kernels.gpu.tuning.search import Budget
from lorafleet_kernels.gpu.tuning.stand import Stand
from lorafleet_kernels.gpu.tuning.store import load, store
from lorafleet_kernels.gpu.tuning.tasks import AttentionTask, LoraTask, Task, missing
from lorafleet_runtime.cli import main
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.gpu.runner import GpuRunner
from lorafleet_runtime.engine.gpu.tune import (
    line_of,
    summary,
    tasks_of,
    tune_and_store,
    tune_at_start,
    tune_command,
)
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.model.tiny import save_tiny_model, tiny_config

DECODER = tiny_config("qwen3")
CARD = Card.of(torch.device("cpu"))
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which this would tune")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineConfig:
    monkeypatch.setenv("LORAFLEET_TUNINGS", str(tmp_path / "tunings"))
    torch.set_num_threads(1)
    model = save_tiny_model(tmp_path / "model", DECODER, seed=4)
    return EngineConfig(
        str(model), "tiny", dtype="float32", max_num_seqs=2, max_batched_tokens=8, max_lora_rank=2, max_model_len=32,
        autotune=1,
    )


def steps_of(tasks: Sequence[Task]) -> list[LoraTask]:
    return [task for task in tasks if isinstance(task, LoraTask)]


def found_for(tasks: Sequence[Task], *, splits: int) -> list[Tuning]:
    """Default forms, those of adapters with other splits, for every task."""
    tunings: list[Tuning] = []
    for task in tasks:
        if isinstance(task, AttentionTask):
            form = task.heads.candidates(task.phase, CARD.capability)[0]
            measured = tuple(Measured(each, 1e-5, 2e-5) for each in task.sequences)
            tunings.append(AttentionTuning(task.heads, form, measured))
        else:
            forms = default_forms(task.step, task.shapes.groups, task.shapes.grain, CARD.processors)
            found = {n: Found(replace(c, splits=splits), 1e-5, 2e-5) for n, c in forms.configs.items()}
            tunings.append(LoraTuning(task.shapes, task.step, found))
    return tunings


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", ["auto", "fp8"])
def test_what_is_tuned_once_is_found_by_the_engine_and_not_tuned_again(
    dtype: str, config: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where keys and values, and adapters, have a byte an element."""
    config = replace(config, kv_dtype=dtype, adapter_dtype=dtype, max_num_seqs=1)
    tasks = tasks_of(config, DECODER)
    assert [str(task) for task in tasks] == [
        "attention, decode", "attention, prompts", "1 rows, 1 segments, rank 2",
    ]  # fmt: skip
    timed, said = [], list[str]()

    def clock(run: Callable[[], None], calls: int, /, repeats: int = 7) -> float:
        timed.append(calls)
        return 1e-3 / len(timed)

    stand, folder = Stand(torch.device("cpu"), CARD, 1, clock), tmp_path / "tunings"

    found = tune_and_store(tasks, stand, Budget(1.0, lambda: 0.0), folder, "the command", said.append)

    assert [t.key for t in load(CARD, [folder])] == [t.key for t in found]
    assert missing(tasks, load(CARD)) == ()
    other = {"auto": "fp8", "fp8": "auto"}[dtype]
    untuned = [
        tasks_of(replace(config, kv_dtype=kv, adapter_dtype=of), DECODER)
        for kv, of in ((other, dtype), (dtype, other))
    ]
    assert [missing(tasks, load(CARD)) for tasks in untuned] == [untuned[0][:2], untuned[1][2:]]
    assert '"command": "the command"' in (folder / "interpreted-4.json").read_text()
    assert said[-1] == f"stored in {folder / 'interpreted-4.json'}"
    assert "1 rows, 1 segments, rank 2" in said[-2]

    monkeypatch.setenv("LORAFLEET_KERNELS", "triton")
    engine = start(replace(config, memory_bytes=2**20, threads=1, autotune=0), lambda message, fraction: None)
    runner = engine._runner
    assert isinstance(runner, GpuRunner) and isinstance(runner.model.ops, TritonOperations)
    shape, _ = runner.model.ops.heads(runner.model.heads, runner._kv.dtype)
    assert [shape.decode, shape.prefill] == [t.form for t in found if isinstance(t, AttentionTuning)]
    steps = [t for t in found if isinstance(t, LoraTuning)]
    assert [runner.forms(t.step) for t in steps] == [t.forms for t in steps]
    engine.close()


def test_only_what_is_missing_is_left_to_tune(config: EngineConfig) -> None:
    tasks = tasks_of(replace(config, max_num_seqs=32, max_batched_tokens=64), DECODER)
    known = found_for(tasks[:5], splits=2)

    left = missing(tasks, known)

    assert 0 < len(left) < len(tasks) - 4
    assert not set(map(str, tasks[:5])) & set(map(str, left))
    assert missing(tasks, []) == tasks


@pytest.mark.interpreted
def test_what_was_found_is_stored_even_if_the_tuner_is_interrupted(config: EngineConfig, tmp_path: Path) -> None:
    tasks, said = steps_of(tasks_of(config, DECODER)), list[str]()

    def clock(run: Callable[[], None], number: int, /, repeats: int = 7) -> float:
        if said:  # the first step is done
            raise KeyboardInterrupt
        return 1.0

    stand = Stand(torch.device("cpu"), CARD, 1, clock)
    with pytest.raises(KeyboardInterrupt):
        tune_and_store(tasks, stand, Budget(1.0, lambda: 0.0), tmp_path, "c", said.append)

    (found,) = load(CARD, [tmp_path])
    assert found.key == (tasks[0].shapes, StepShape(2, 2, 2))


def test_gains_are_told_by_task_and_in_all(config: EngineConfig) -> None:
    tasks = tasks_of(config, DECODER)
    decode, _, first, second = found_for(tasks, splits=2)
    assert isinstance(second, LoraTuning)
    slow = replace(second, found={n: replace(f, default_seconds=8e-5) for n, f in second.found.items()})

    assert "80.0 us ->      40.0 us   2.00 x   qkv 2.00  o 2.00  gate_up 2.00  down 2.00" in line_of(tasks[2], first)
    told = line_of(tasks[0], decode)
    assert told.startswith("attention, decode ")
    assert "20.0 us ->      10.0 us   2.00 x   1 x 1 after 31 2.00, 2 x 1 after 31 2.00: n" in told
    assert told.endswith("4 programs a processor")
    assert summary([first, slow], 5) == "2 of 5 tasks: 4.000 times as fast as the default forms (geometric mean)"
    assert summary([], 5) == "none of 5 tasks could be tuned"


@pytest.mark.interpreted
def test_the_command_tells_what_it_found_and_finds_it_again(
    config: EngineConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Attention alone, as no adapter may come."""
    config = replace(config, max_lora_rank=0, kv_dtype="fp8")
    stand = Stand(torch.device("cpu"), CARD, 1, lambda run, calls, repeats=7: 1e-5)

    assert tune_command(config, 600.0, False, "lorafleet-runtime tune", stand) == 0

    first, decode, prompts, stored, last = capsys.readouterr().out.splitlines()
    assert first.startswith("interpreted: 2 tasks of ")
    assert first.endswith(" in float32, keys and values fp8, adapters auto, in at most 600 s")
    assert "attention, decode" in decode and "attention, prompts" in prompts
    assert stored.startswith("stored in ")
    assert last == "2 of 2 tasks: 1.000 times as fast as the default forms (geometric mean)"
    assert tune_command(config, 600.0, True, "lorafleet-runtime tune --missing", stand) == 0
    assert "interpreted: 0 tasks of " in capsys.readouterr().out


def test_a_starts_tuner_is_told_all_that_the_engine_is(
    config: EngineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\necho tuned\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))

    tune_at_start(replace(config, kv_dtype="fp8", adapter_dtype="fp8"), DECODER, CARD)

    told = (tmp_path / "told").read_text()
    assert told.startswith("-m lorafleet_runtime tune --missing --model ")
    assert "--dtype float32 --kv-dtype fp8 --adapter-dtype fp8 --max-num-seqs 2 --max-batched-tokens 8" in told
    assert "--max-lora-rank 2 --max-model-len 32 --seconds 1" in told


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
    found = found_for(tasks_of(config, DECODER), splits=2)
    store(Run({}, tuple(found)), CARD, Path(os.environ["LORAFLEET_TUNINGS"]))

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
