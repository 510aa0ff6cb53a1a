"""Tokens on a GPU, greedy and drawn, in two launches, three with top-k or top-p. What is drawn is what the engine's
`sampling` draws, but for the rounding of sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorafleet_kernels.gpu.argmax import TritonArgmax
from lorafleet_kernels.gpu.kernels import cutoff
from lorafleet_kernels.gpu.kernels.cutoff import cutoff_kernel
from lorafleet_kernels.gpu.kernels.sampling import BLOCK, MOST_BLOCKS, WARPS, draw_kernel
from lorafleet_kernels.gpu.launch import FUSED


@dataclass(frozen=True, slots=True)
class Draws:
    """Of each row `[n]`: 1 / temperature, 0 where the best token is wanted; the least probability relative to the best
    token's; how many of the best tokens are kept, int32, 0 for all; how much of the probability, 1 for all; and a
    number in [0, 1), float64; the others float32. `filtered`: whether any row is not kept whole."""

    inverse_temperatures: Tensor
    min_ps: Tensor
    top_ks: Tensor
    top_ps: Tensor
    uniforms: Tensor
    filtered: bool


class TritonSampler:
    """Of up to `rows` rows at a time, for one stream; keeps what the programs of a row tell each other."""

    def __init__(self, rows: int, device: torch.device, processors: int) -> None:
        """`processors`: multiprocessors of the card."""
        self._argmax = TritonArgmax(rows, device, processors)
        self._sums = torch.empty(rows, MOST_BLOCKS, dtype=torch.float64, device=device)
        self._arrived = torch.zeros(rows, dtype=torch.int32, device=device)
        self._all = torch.full((rows,), -torch.inf, device=device)
        self._cutoffs = torch.empty_like(self._all)

    def __call__(self, logits: Tensor, draws: Draws) -> Tensor:
        """Tokens `[n]` int64 of `logits [n, V]`; -1 where the best is not finite, or a logit is NaN. Raises ValueError
        for more rows than this was made for, and for a vocabulary beyond the kernel's."""
        rows, columns = logits.shape
        blocks = -(-columns // BLOCK)
        if blocks > MOST_BLOCKS:
            raise ValueError(f"a vocabulary of {columns} tokens: the kernel draws from up to {BLOCK * MOST_BLOCKS}")
        tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
        tops = torch.empty(rows, device=logits.device)
        self._argmax.into(tokens, tops, logits)
        cutoffs = self._all
        if rows and draws.filtered:
            cutoffs = self._cutoffs
            cutoff_kernel[(rows,)](
                logits, tops, draws.inverse_temperatures, draws.min_ps, draws.top_ks, draws.top_ps, cutoffs,
                columns, logits.stride(0), BLOCK=cutoff.BLOCK, num_warps=cutoff.WARPS, **FUSED,
            )  # fmt: skip
        if rows:
            draw_kernel[(rows, blocks)](
                logits, tokens, tops, draws.inverse_temperatures, draws.min_ps, cutoffs, draws.uniforms,
                self._sums, self._arrived, columns, logits.stride(0),
                BLOCK=BLOCK, BLOCKS=MOST_BLOCKS, num_warps=WARPS, **FUSED,
            )  # fmt: skip
        return tokens
