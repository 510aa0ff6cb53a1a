"""DoRA's factor g = m / ‖W + sBA‖, computed once at load from the base weights.

Liu et al. 2024, arXiv:2402.09353, eq. 5; PEFT's `tuners/lora/dora.py`, which computes it again in every forward pass
and gets the same, as nothing in it depends on the input.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lorafleet_runtime.model.adapter_weights import LoraPair
from lorafleet_runtime.model.errors import InvalidAdapter

BLOCK_ELEMENTS = 2**24
"""Of W + BA that exist at a time: a vocabulary's whole product would be gigabytes."""


def row_factor(magnitude: Tensor, weight: Tensor, pair: LoraPair, key: str) -> Tensor:
    """g `[out]` of a linear layer: `magnitude [out]` over the norms of the rows of `weight [out, in]` plus the pair."""
    norms = [torch.linalg.vector_norm(block, dim=1) for block in _blocks(weight, pair)]
    return _divide(magnitude, torch.cat(norms), key)


def column_factor(magnitude: Tensor, weight: Tensor, pair: LoraPair, key: str) -> Tensor:
    """g `[H]` of an embedding `weight [V, H]`: one norm per column, over the whole vocabulary."""
    squares = sum((block.double().square().sum(0) for block in _blocks(weight, pair)), torch.zeros(()))
    return _divide(magnitude, squares.sqrt().float(), key)


def _blocks(weight: Tensor, pair: LoraPair) -> Iterator[Tensor]:
    """Rows of `weight + b a` in float32, a few at a time."""
    rows = max(1, BLOCK_ELEMENTS // weight.shape[1])
    for begin in range(0, weight.shape[0], rows):
        yield torch.addmm(weight[begin : begin + rows].float(), pair.b[begin : begin + rows], pair.a)


def _divide(magnitude: Tensor, norm: Tensor, key: str) -> Tensor:
    factor = magnitude / norm
    if not bool(torch.isfinite(factor).all()):
        raise InvalidAdapter(f"{key}: DoRA's norm of base weight and update is zero somewhere, so it has no direction")
    return factor
