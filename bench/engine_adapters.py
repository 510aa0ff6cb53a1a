"""The adapters that systems are compared with: all linear layers, in PEFT's format, heard and finite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lorafleet_runtime.model.config import LORA_TARGETS, DecoderConfig
from lorafleet_runtime.model.tiny import random_adapter, save_adapter

SAME_RANK = (16,) * 8
MIXED_RANKS = (8, 16, 32, 64, 8, 16, 32, 64)

STRENGTH = 0.4
"""Of the updates, over the weights: so that nearly every second token is another one than the base's. At 0.02 one in
twenty is, and a gate would pass without any adapters."""


def make_adapters(
    folder: Path, config: DecoderConfig, ranks: Sequence[int], prefix: str, seed: int = 0,
    targets: Sequence[str] = LORA_TARGETS,
) -> dict[str, Path]:  # fmt: skip
    """One adapter for each of `ranks`, by name; bfloat16, which every system can hold exactly."""
    found: dict[str, Path] = {}
    for index, rank in enumerate(ranks):
        adapter = random_adapter(
            config, rank, targets, seed + index, alpha=rank, strength=STRENGTH, dtype=torch.bfloat16
        )
        name = f"{prefix}{index}"
        found[name] = save_adapter(folder / name, adapter)
    return found
