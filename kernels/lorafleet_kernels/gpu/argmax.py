"""Greedy tokens on a GPU. Twin: `reference.argmax`."""

from __future__ import annotations

import torch
from torch import Tensor

from lorafleet_kernels.gpu.kernels.argmax import BLOCK, MOST_SPLITS, NO_TOKEN, WARPS, argmax_kernel
from lorafleet_kernels.gpu.launch import FUSED


class TritonArgmax:
    """Of up to `rows` rows at a time, for one stream; keeps what the programs of a row tell each other."""

    def __init__(self, rows: int, device: torch.device, processors: int) -> None:
        """`processors`: multiprocessors of the card."""
        self._processors = processors
        self._values = torch.empty(rows, MOST_SPLITS, device=device)
        self._ids = torch.empty(rows, MOST_SPLITS, dtype=torch.int32, device=device)
        self._arrived = torch.zeros(rows, dtype=torch.int32, device=device)

    def __call__(self, logits: Tensor) -> Tensor:
        """Tokens `[n]` int64 of `logits [n, V]`, whose rows may lie apart; -1 where the best is not finite, or a logit
        is NaN. Raises ValueError for more rows than this was made for."""
        rows = len(logits)
        tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
        self.into(tokens, torch.empty(rows, device=logits.device), logits)
        return tokens

    def into(self, tokens: Tensor, tops: Tensor, logits: Tensor) -> None:
        """The same, written to `tokens [n]`, and each row's best logit, inf for NaN, to `tops [n]` float32."""
        rows, columns = logits.shape
        if rows > len(self._arrived):
            raise ValueError(f"{rows} rows of logits, made for {len(self._arrived)}: make it for more")
        if logits.stride(1) != 1:
            raise ValueError("the logits of a row lie apart: give rows that are contiguous")
        if not rows:
            return
        in_all = -(-columns // BLOCK)
        # Four programs fit on a processor; more of them a row would only wait.
        wanted = min(in_all, MOST_SPLITS, max(1, 4 * self._processors // rows))
        blocks = -(-in_all // wanted)
        argmax_kernel[(rows, -(-in_all // blocks))](
            logits, tokens, tops, self._values, self._ids, self._arrived, columns, blocks, logits.stride(0),
            BLOCK=BLOCK, SPLITS=MOST_SPLITS, NO_TOKEN=NO_TOKEN, num_warps=WARPS, **FUSED,
        )  # fmt: skip
