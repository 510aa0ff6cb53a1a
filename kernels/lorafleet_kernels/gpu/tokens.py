"""Tokens that stay on the card from the step that sampled them to the next."""

from __future__ import annotations

import torch
from torch import Tensor

from lorafleet_kernels.gpu.kernels import tokens as kernels
from lorafleet_kernels.gpu.launch import FUSED


def stand_in(source: int) -> int:
    """What stands for the `source`-th of the tokens that the step before sampled."""
    return -1 - source


def known_tokens(tokens: Tensor, sampled: Tensor) -> Tensor:
    """`tokens [T]` int32 → int64, with `sampled [n]` int32 in the place of what stands for them; 0 for what was not
    sampled."""
    out = tokens.new_empty(len(tokens), dtype=torch.int64)
    if len(out):
        grid = (-(-len(out) // kernels.BLOCK),)
        kernels.known_tokens[grid](
            out, tokens, sampled, len(out), BLOCK=kernels.BLOCK, num_warps=kernels.WARPS, num_stages=2, **FUSED
        )
    return out
