"""The pool's memory, as it is to keys and values and as it is to adapters' weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorafleet_kernels.reference_fp8 import FP8
from lorafleet_runtime.core.pages import PAGE_TOKENS
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.on_demand import zeros_on_demand

SCALE = torch.bfloat16
"""Of a token's key in a head, and of its value, where those are of 8 bits: `lorafleet_kernels.reference_fp8`."""


def kv_dtype_of(choice: str, model: torch.dtype) -> torch.dtype:
    """What `--kv-dtype` stands for, for a model of that dtype."""
    return FP8 if choice == "fp8" else model


def page_elements(kv_dim: int, kv: torch.dtype, seen_as: torch.dtype) -> int:
    """Elements of one page in one layer, which is as large as keys and values of 16 tokens in `kv`, where it is read as
    `seen_as`: adapters may have other elements than keys and values."""
    return PAGE_TOKENS * 2 * kv_dim * kv.itemsize // seen_as.itemsize


def page_bytes(config: DecoderConfig, kv: torch.dtype) -> int:
    """Of one page over all layers, with the scales beside the pool, if any."""
    scales = PAGE_TOKENS * 2 * config.num_kv_heads * SCALE.itemsize if kv == FP8 else 0
    return config.num_layers * (page_elements(config.kv_dim, kv, torch.uint8) + scales)


@dataclass(frozen=True, slots=True)
class Pool:
    """`weights [layers, P, elements]` and `kv [layers, P, 2, 16, kv_heads, D]` are the same memory. `scales
    [layers, P, kv_heads, 16, 2]`: of keys and values of 8 bits, else None."""

    weights: Tensor
    kv: Tensor
    scales: Tensor | None

    @classmethod
    def of(cls, config: DecoderConfig, pages: int, dtype: torch.dtype, kv: torch.dtype, device: torch.device) -> Pool:
        """All zeros; on a CPU, memory is taken as it is used. `dtype`: of adapters' weights."""
        shape = (config.num_layers, pages, page_elements(config.kv_dim, kv, dtype))
        if device.type == "cpu":
            weights = zeros_on_demand(shape, dtype)
        else:
            weights = torch.zeros(shape, dtype=dtype, device=device)
        heads = (config.num_kv_heads, config.head_dim)
        keys_and_values = weights.view(kv).view(config.num_layers, pages, 2, PAGE_TOKENS, *heads)
        scales = None
        if kv == FP8:
            of_heads = (config.num_layers, pages, config.num_kv_heads, PAGE_TOKENS, 2)
            scales = torch.zeros(of_heads, dtype=SCALE, device=device)
        return cls(weights, keys_and_values, scales)
