"""One rank's part of the base model, ready to multiply: what every rank does at start, the only one too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.model.checkpoint import load_weights
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.parallel import Shard, shard_weight


def load_rank(
    config: EngineConfig, decoder: DecoderConfig, shard: Shard, progress: Callable[[float], None]
) -> Decoder:
    """Read what this rank holds of the model at `config.model` to `config.device`, in `config.dtype`; both are decided
    by now.

    Peak memory is that part and one whole tensor. Raises the checkpoint reader's errors.
    """

    device = torch.device(config.device)

    def keep(name: str, tensor: Tensor) -> Tensor:
        return shard_weight(name, tensor, shard).to(device)

    weights = load_weights(Path(config.model), decoder, getattr(torch, config.dtype), progress, keep)
    if shard.ranks > 1 and decoder.tie_word_embeddings:
        weights["lm_head.weight"] = keep("lm_head.weight", weights["embed_tokens.weight"])
    return Decoder(decoder, weights, config.max_model_len, shard.ranks)
