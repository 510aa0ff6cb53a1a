"""Tokens chosen on the card: what a step's rows ask for goes there in one copy, and nothing is looked at here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lorafleet_kernels.gpu.kernels.sampling import BLOCK, MOST_BLOCKS
from lorafleet_kernels.gpu.operations import TritonOperations
from lorafleet_kernels.gpu.sampling import Draws, TritonSampler
from lorafleet_runtime.engine.sampling.philox import uniforms
from lorafleet_runtime.engine.sampling.sampler import GREEDY, Row, tokens_of
from lorafleet_runtime.engine.transfers import on_device

LEAST_ROWS = 64


class GpuTokens:
    """`sampler.TokensOf` by the card's kernels; a vocabulary beyond them is drawn from by plain torch."""

    def __init__(self, ops: TritonOperations) -> None:
        self._ops = ops
        self._sampler: TritonSampler | None = None
        self._rows = 0

    def __call__(self, adjusted: Tensor, rows: Sequence[Row]) -> Tensor:
        """Tokens `[n]` int64 of `adjusted [n, V]` float32, -1 where the best is not finite."""
        if all(row.sampling.temperature < GREEDY for row in rows):
            return self._ops.argmax(adjusted)
        if adjusted.shape[1] > BLOCK * MOST_BLOCKS:
            return tokens_of(adjusted, rows)
        if self._sampler is None or len(rows) > self._rows:
            self._rows = max(LEAST_ROWS, 2 * len(rows))
            self._sampler = TritonSampler(self._rows, adjusted.device, self._ops.card.processors)
        return self._sampler(adjusted, draws_of(rows, adjusted.device))


def draws_of(rows: Sequence[Row], device: torch.device) -> Draws:
    """What rows ask for, as the kernels take it."""
    count, settings = len(rows), [row.sampling for row in rows]
    packed = np.empty(6 * count, np.float32)
    packed[: 2 * count].view(np.float64)[:] = uniforms([s.seed for s in settings], [row.position for row in rows])
    inverse, min_ps, top_ks, top_ps = packed[2 * count :].reshape(4, count)
    inverse[:] = [1.0 / s.temperature if s.temperature >= GREEDY else 0.0 for s in settings]
    min_ps[:] = [s.min_p for s in settings]
    top_ks.view(np.int32)[:] = [max(s.top_k, 0) for s in settings]
    top_ps[:] = [s.top_p for s in settings]
    there = on_device(packed, torch.float32, device)
    parts = there[2 * count :].view(4, count)
    filtered = any(s.top_k > 0 or s.top_p < 1.0 for s in settings)
    ranks = parts[2].view(torch.int32)
    return Draws(parts[0], parts[1], ranks, parts[3], there[: 2 * count].view(torch.float64), filtered)
