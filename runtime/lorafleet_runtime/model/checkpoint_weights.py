"""The base model's own matrices, whole, for a rank that holds parts: read from the checkpoint again, one at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lorafleet_runtime.model.checkpoint import load_weights
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.weights import BLOCKS, has_bias


class CheckpointWeights:
    """`base_weights.BaseWeights`. Only adapters that depend on the base model pay for it: plain LoRA asks nothing."""

    def __init__(self, path: Path, config: DecoderConfig, dtype: torch.dtype) -> None:
        """`config` is the whole decoder's."""
        self._path = path
        self._config = config
        self._dtype = dtype

    def projection(self, layer: int, target: str) -> Tensor:
        return self._read(f"layers.{layer}.{BLOCKS[target]}.{target}.weight")

    def bias(self, layer: int, target: str) -> Tensor | None:
        name = f"layers.{layer}.{BLOCKS[target]}.{target}.bias"
        return self._read(name) if has_bias(self._config, target) else None

    def embedding(self) -> Tensor:
        return self._read("embed_tokens.weight")

    def lm_head(self) -> Tensor:
        return self.embedding() if self._config.tie_word_embeddings else self._read("lm_head.weight")

    def forget(self) -> None:
        """Nothing is kept."""

    def _read(self, name: str) -> Tensor:
        return load_weights(self._path, self._config, self._dtype, wanted=name.__eq__)[name]
