"""`lorafleet-runtime tune`: measures the forms of the LoRA kernels for a model on this card, and keeps what was found.

`serve --autotune` runs it as a process of its own: a card that a kernel has brought down is the child's alone."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
import torch

from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.lora import StepShape
from lorafleet_kernels.gpu.tuning.about import about_run
from lorafleet_kernels.gpu.tuning.document import Run
from lorafleet_kernels.gpu.tuning.lookup import ModelShapes, Tuning, nearest
from lorafleet_kernels.gpu.tuning.search import Budget, Say
from lorafleet_kernels.gpu.tuning.steps import steps_to_tune
from lorafleet_kernels.gpu.tuning.store import CannotStore, check_folder, load, own_folder, store
from lorafleet_kernels.gpu.tuning.tuner import Stand, described, tuned
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


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be tuned: steps of a model, in order of importance; `page`: elements of a pool page."""

    shapes: ModelShapes
    page: int
    steps: tuple[StepShape, ...]

    @classmethod
    def of(cls, config: EngineConfig, decoder: DecoderConfig) -> Order:
        """Every step that an engine of this configuration, whose dtype is decided, may be asked for."""
        dtype = getattr(torch, config.dtype)
        page = page_elements(decoder.kv_dim, kv_dtype_of(config.kv_dtype, dtype), dtype)
        shapes = ModelShapes(group_shapes(decoder), config.dtype, grain_for(decoder, page))
        steps = steps_to_tune(config.max_num_seqs, config.max_batched_tokens, config.max_lora_rank)
        return cls(shapes, page, tuple(steps))

    def without(self, known: Sequence[Tuning]) -> Order:
        """Of the steps those for which nothing is known yet."""
        return replace(self, steps=tuple(s for s in self.steps if nearest(s, known, self.shapes) is None))


def tune_command(config: EngineConfig, seconds: float, missing: bool, command: str) -> int:
    """Tune all steps, or those that are missing, print a table of gains, store what was found. Returns the exit status:
    1 where nothing was found that was looked for.

    Raises ConfigError."""
    if not torch.cuda.is_available():
        raise ConfigError("tune: torch sees no GPU here, and only on one are its kernels timed: look at `nvidia-smi`")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ConfigError("tune: TRITON_INTERPRET=1 is set: Triton would interpret what is to be timed. Unset it")
    dtype = str(best_dtype_of_card()).removeprefix("torch.") if config.dtype == "auto" else config.dtype
    try:
        order = Order.of(replace(config, dtype=dtype), read_config(config.model))
        card = this_card()
        if missing:
            order = order.without(load(card))
        print(f"{card.name}: {len(order.steps)} steps of {config.model} in {dtype}, in at most {seconds:.0f} s")
        found = tune_and_store(order, card, Stand.here(), Budget(seconds), own_folder(), command, _print)
    except (CannotStore, CheckpointError, ValueError) as error:
        raise ConfigError(f"tune: {error}") from error
    print(summary(found, len(order.steps)))
    return 0 if found or not order.steps else 1


def tune_at_start(config: EngineConfig, decoder: DecoderConfig, card: Card | None = None) -> None:
    """Let a child tune what no start has tuned yet, for about `config.autotune` seconds. The default forms serve where
    it fails; the log says so. `config` is decided; `card`: by default the current device's."""
    if not Order.of(config, decoder).without(load(card or this_card())).steps:
        return
    options = {
        "--model": config.model, "--dtype": config.dtype, "--kv-dtype": config.kv_dtype,
        "--max-num-seqs": config.max_num_seqs,
        "--max-batched-tokens": config.max_batched_tokens, "--max-lora-rank": config.max_lora_rank,
        "--seconds": config.autotune,
    }  # fmt: skip
    command = [sys.executable, "-m", "lorafleet_runtime", "tune", "--missing"]
    command += [str(part) for option in options.items() for part in option]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=config.autotune + GRACE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("adapters' kernels are not tuned, the default forms serve", reason=str(error))
        return
    last = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines()[-1:]
    if done.returncode:
        log.warning("adapters' kernels are not tuned, the default forms serve", reason=" ".join(last))
    else:
        log.info("adapters' kernels were tuned for this card", result=" ".join(last))


def tune_and_store(
    order: Order, card: Card, stand: Stand, budget: Budget, folder: Path, command: str, say: Say
) -> list[Tuning]:
    """What was found, which is in the card's file, also where this is interrupted. Raises CannotStore, before anything
    is measured if it can be known then."""
    check_folder(folder)
    found: list[Tuning] = []
    try:
        for tuning in tuned(order.steps, order.shapes, order.page, stand, budget, say):
            found.append(tuning)
            say(line_of(tuning))
    finally:
        if found:
            say(f"stored in {store(Run(about_run(command), tuple(found)), card, folder)}")
    return found


def line_of(tuning: Tuning) -> str:
    """A row of the table: microseconds of a layer's groups together, by default and tuned; then how many times faster
    each group is, and by which form where that is not the default."""
    gains = "  ".join(f"{name} {f.default_seconds / f.seconds:.2f}" for name, f in tuning.found.items())
    before, after = 1e6 * tuning.default_seconds, 1e6 * tuning.seconds
    return f"{described(tuning.step):<36} {before:>9.1f} us -> {after:>9.1f} us  {before / after:>5.2f} x   {gains}"


def summary(found: Sequence[Tuning], steps: int) -> str:
    """What was gained over all of `steps` steps, in a line."""
    if not found:
        return f"none of {steps} steps could be tuned"
    gains = [tuning.default_seconds / tuning.seconds for tuning in found]
    mean = math.exp(sum(map(math.log, gains)) / len(gains))
    return f"{len(found)} of {steps} steps: {mean:.3f} times as fast as the default forms (geometric mean)"


def this_card() -> Card:
    """Of CUDA's current device. Raises ValueError for one that the kernels do not know."""
    return Card.of(torch.device("cuda", torch.cuda.current_device()))


def _print(line: str) -> None:
    print(line, flush=True)
