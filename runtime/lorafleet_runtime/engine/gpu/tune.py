"""`lorafleet-runtime tune`: measures the forms of kernels for a model on this card, and keeps what was found.

`serve --autotune` runs it as a process of its own: a card that a kernel has brought down is the child's alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

import structlog
import torch

from lorafleet_kernels.batch import HeadSizes
from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.weight_types import FP8_NAME
from lorafleet_kernels.gpu.tuning.about import about_run
from lorafleet_kernels.gpu.tuning.attention.lookup import Heads, shown
from lorafleet_kernels.gpu.tuning.document import Run, Tuning
from lorafleet_kernels.gpu.tuning.lora.lookup import LoraTuning, ModelShapes
from lorafleet_kernels.gpu.tuning.search import Budget, Say
from lorafleet_kernels.gpu.tuning.stand import Stand
from lorafleet_kernels.gpu.tuning.store import CannotStore, check_folder, load, own_folder, store
from lorafleet_kernels.gpu.tuning.tasks import Engine, Task, missing, tasks_for
from lorafleet_kernels.gpu.tuning.tuner import tuned
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.gpu.memory import best_dtype_of_card
from lorafleet_runtime.engine.gpu.runner import group_shapes
from lorafleet_runtime.engine.pool import kv_dtype_of, page_elements
from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.model.checkpoint import read_config
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.errors import CheckpointError
from lorafleet_runtime.model.lora import grain_for

log = structlog.get_logger("engine")

GRACE_SECONDS = 60
"""Beyond its time: for the child's start, the step at hand, and the compiler."""


def tasks_of(config: EngineConfig, decoder: DecoderConfig) -> tuple[Task, ...]:
    """All that an engine of this configuration, whose dtype is decided, may be asked for, in order of importance.

    Raises ValueError for a model whose heads the kernels do not know."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    kv = kv_dtype_of(config.kv_dtype, dtype)
    page = page_elements(decoder.kv_dim, kv, dtype)
    weights = FP8_NAME if config.adapter_dtype == "fp8" else config.dtype
    shapes = ModelShapes(group_shapes(decoder), config.dtype, weights, grain_for(decoder, page))
    longest = min(config.max_model_len or decoder.max_position_embeddings, decoder.max_position_embeddings)
    engine = Engine(config.max_num_seqs, config.max_batched_tokens, config.max_lora_rank, longest)
    heads = Heads.of(HeadSizes(decoder.num_heads, decoder.num_kv_heads, decoder.head_dim, 0.0), dtype, kv)
    return tasks_for(engine, shapes, page, heads)


def tune_command(
    config: EngineConfig, seconds: float, only_missing: bool, command: str, stand: Stand | None = None
) -> int:
    """Tune all, or what is missing, print a table of gains, store what was found. Returns the exit status: 1 where
    nothing was found that was looked for. `stand`: by default this machine's GPU.

    Raises ConfigError."""
    if stand is None:
        _check_gpu()
    dtype = str(best_dtype_of_card()).removeprefix("torch.") if config.dtype == "auto" else config.dtype
    try:
        stand = stand or Stand.here()
        tasks = tasks_of(replace(config, dtype=dtype), read_config(config.model))
        if only_missing:
            tasks = missing(tasks, load(stand.card))
        kinds = f"{dtype}, keys and values {config.kv_dtype}, adapters {config.adapter_dtype}"
        print(f"{stand.card.name}: {len(tasks)} tasks of {config.model} in {kinds}, in at most {seconds:.0f} s")
        found = tune_and_store(tasks, stand, Budget(seconds), own_folder(), command, _print)
    except (CannotStore, CheckpointError, ValueError) as error:
        raise ConfigError(f"tune: {error}") from error
    print(summary(found, len(tasks)))
    return 0 if found or not tasks else 1


def _check_gpu() -> None:
    if not torch.cuda.is_available():
        raise ConfigError("tune: torch sees no GPU here, and only on one are its kernels timed: look at `nvidia-smi`")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ConfigError("tune: TRITON_INTERPRET=1 is set: Triton would interpret what is to be timed. Unset it")


def tune_at_start(config: EngineConfig, decoder: DecoderConfig, card: Card | None = None) -> None:
    """Let a child tune what no start has tuned yet, for about `config.autotune` seconds. The default forms serve where
    it fails; the log says so. `config` is decided; `card`: by default the current device's."""
    if not missing(tasks_of(config, decoder), load(card or this_card())):
        return
    options = {
        "--model": config.model, "--dtype": config.dtype, "--kv-dtype": config.kv_dtype,
        "--adapter-dtype": config.adapter_dtype, "--max-num-seqs": config.max_num_seqs,
        "--max-batched-tokens": config.max_batched_tokens, "--max-lora-rank": config.max_lora_rank,
        "--max-model-len": config.max_model_len, "--seconds": config.autotune,
    }  # fmt: skip
    command = [sys.executable, "-m", "lorafleet_runtime", "tune", "--missing"]
    command += [str(part) for option in options.items() for part in option]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=config.autotune + GRACE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("kernels are not tuned, the default forms serve", reason=str(error))
        return
    last = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines()[-1:]
    if done.returncode:
        log.warning("kernels are not tuned, the default forms serve", reason=" ".join(last))
    else:
        log.info("kernels were tuned for this card", result=" ".join(last))


def tune_and_store(
    tasks: Sequence[Task], stand: Stand, budget: Budget, folder: Path, command: str, say: Say
) -> list[Tuning]:
    """What was found, which is in the card's file, also where this is interrupted. Raises CannotStore, before anything
    is measured if it can be known then."""
    check_folder(folder)
    found: list[Tuning] = []
    try:
        for task, tuning in tuned(tasks, stand, budget, say):
            found.append(tuning)
            say(line_of(task, tuning))
    finally:
        if found:
            say(f"stored in {store(Run(about_run(command), tuple(found)), stand.card, folder)}")
    return found


def line_of(task: Task, tuning: Tuning) -> str:
    """A row of the table: microseconds by default and tuned, of a layer's groups together, or of attention's launches,
    their mean; then how many times faster each of them is."""
    if isinstance(tuning, LoraTuning):
        gains = "  ".join(f"{name} {f.default_seconds / f.seconds:.2f}" for name, f in tuning.found.items())
    else:
        parts = [f"{m.sequences} {m.default_seconds / m.seconds:.2f}" for m in tuning.measured]
        gains = ", ".join(parts) + f": {shown(tuning.form)}"
    before, after = 1e6 * tuning.default_seconds, 1e6 * tuning.seconds
    return f"{task!s:<36} {before:>9.1f} us -> {after:>9.1f} us  {before / after:>5.2f} x   {gains}"


def summary(found: Sequence[Tuning], tasks: int) -> str:
    """What was gained over all of `tasks`, in a line."""
    if not found:
        return f"none of {tasks} tasks could be tuned"
    gains = [tuning.default_seconds / tuning.seconds for tuning in found]
    mean = geometric_mean(gains)
    return f"{len(found)} of {tasks} tasks: {mean:.3f} times as fast as the default forms (geometric mean)"


def this_card() -> Card:
    """Of CUDA's current device. Raises ValueError for one that the kernels do not know."""
    return Card.of(torch.device("cuda", torch.cuda.current_device()))


def _print(line: str) -> None:
    print(line, flush=True)
