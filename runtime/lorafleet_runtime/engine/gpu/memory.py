"""What of a card's memory the weights, a step and the pool have. All that does not fit is refused with the numbers."""

from __future__ import annotations

import math

import torch

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.gpu.page_copies import STAGED_BYTES
from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.weights import expected_shapes

SHARE = 0.92
"""Of what is free on a card once the weights are there and what a step takes is set aside: the rest is for the
allocator's rounding, libraries that load their code late, and captured graphs."""
LIBRARIES = 512 * 2**20
"""What cuBLAS takes for its workspaces, and a context for kernels that are loaded when first used."""


def best_dtype_of_card() -> torch.dtype:
    """bfloat16 from Ampere on, else float16."""
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def check_weights_fit(config: EngineConfig, decoder: DecoderConfig) -> None:
    """Before they are read. Raises ConfigError where the card's free memory does not hold the weights."""
    free, total = torch.cuda.mem_get_info()
    needed = weight_bytes(config, decoder)
    if needed >= free:
        raise ConfigError(
            f"{config.model} has {needed >> 20} MiB of weights in {config.dtype}, and the card has {total >> 20} MiB, "
            f"of which {free >> 20} are free: take a larger card or a smaller model, or free what others hold of it"
        )


def weight_bytes(config: EngineConfig, decoder: DecoderConfig) -> int:
    """Of all weights, in `config.dtype`."""
    size: int = getattr(torch, config.dtype).itemsize
    return size * sum(math.prod(shape) for shape in expected_shapes(decoder).values())


def pool_bytes(config: EngineConfig, decoder: DecoderConfig) -> int:
    """What the pool has of the card's free memory, now that the weights are on it: `config.memory_bytes`, or all that a
    step leaves. Raises ConfigError when that is nothing, or less than was asked for."""
    free, total = torch.cuda.mem_get_info()
    wanted = step_bytes(config, decoder)
    card = (
        f"the card has {total >> 20} MiB, of which {free >> 20} are free beside the weights, and a step takes up to "
        f"{wanted >> 20}"
    )
    left = int(SHARE * (free - wanted))
    if left <= 0:
        raise ConfigError(f"{card}: lower --max-batched-tokens or --max-num-seqs, or take a larger card")
    if config.memory_bytes > free - wanted:
        raise ConfigError(
            f"--memory {config.memory_bytes} is {config.memory_bytes >> 20} MiB, and {card}: lower it to "
            f"{left >> 20}Mi, or leave it out"
        )
    return config.memory_bytes or left


def step_bytes(config: EngineConfig, decoder: DecoderConfig) -> int:
    """The most that one step takes beside the pool: what lies between operations, logits with the copies that sampling
    makes of them, and adapters on their way to their pages."""
    size: int = getattr(torch, config.dtype).itemsize
    heads = (2 * decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim
    between = config.max_batched_tokens * (4 * decoder.hidden_size + heads + 3 * decoder.intermediate_size) * size
    planes = 16 * config.max_batched_tokens * 3 * config.max_lora_rank * 4
    logits = config.max_num_seqs * decoder.vocab_size * (size + 4 * 4)
    return LIBRARIES + STAGED_BYTES + 2 * between + planes + logits
