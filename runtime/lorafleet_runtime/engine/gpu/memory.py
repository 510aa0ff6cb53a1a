"""Which device an engine runs on, and how much of a card's memory its pool may have."""

from __future__ import annotations

import torch

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.gpu.page_copies import STAGED_BYTES
from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.model.config import DecoderConfig

SHARE = 0.92
"""Of what is free on a card once the weights are there and what a step takes is set aside: the rest is for the
allocator's rounding, libraries that load their code late, and captured graphs."""
LIBRARIES = 512 * 2**20
"""What cuBLAS takes for its workspaces, and a context for kernels that are loaded when first used."""


def device_for(config: EngineConfig) -> str:
    """`cpu` or `cuda`. Raises ConfigError where a GPU is asked for and there is none."""
    found = torch.cuda.is_available()
    if config.device == "cuda" and not found:
        raise ConfigError(
            "--device cuda: torch sees no GPU here: look at `nvidia-smi`, whether the driver is new enough for CUDA "
            f"{torch.version.cuda or '(this torch has none)'}, and whether the container was given the card"
        )
    return "cuda" if found and config.device != "cpu" and config.tensor_parallel == 1 else "cpu"


def best_dtype_of_card() -> torch.dtype:
    """bfloat16 from Ampere on, else float16."""
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def pool_bytes(config: EngineConfig, decoder: DecoderConfig) -> int:
    """What the pool may have of the card's free memory, now that the weights are on it. Raises ConfigError when that is
    nothing."""
    free, total = torch.cuda.mem_get_info()
    wanted = step_bytes(config, decoder)
    left = int(SHARE * (free - wanted))
    if left <= 0:
        raise ConfigError(
            f"the card has {total >> 20} MiB, of which {free >> 20} are free beside the weights, and a step takes up "
            f"to {wanted >> 20}: lower --max-batched-tokens or --max-num-seqs, or take a larger card"
        )
    return left


def step_bytes(config: EngineConfig, decoder: DecoderConfig) -> int:
    """The most that one step takes beside the pool: what lies between operations, logits with the copies that sampling
    makes of them, and adapters on their way to their pages."""
    size: int = getattr(torch, config.dtype).itemsize
    heads = (2 * decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim
    between = config.max_batched_tokens * (4 * decoder.hidden_size + heads + 3 * decoder.intermediate_size) * size
    planes = 16 * config.max_batched_tokens * 3 * config.max_lora_rank * 4
    logits = config.max_num_seqs * decoder.vocab_size * (size + 4 * 4)
    return LIBRARIES + STAGED_BYTES + 2 * between + planes + logits
