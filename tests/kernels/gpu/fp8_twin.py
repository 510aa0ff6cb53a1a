"""Cases of `attention_twin` whose pools are of 8 bits, and NaN wherever nothing may be read, their scales too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorafleet_kernels.gpu.attention.step import AttentionShape, DecodeScratch, TritonAttention, attention_of_step
from lorafleet_kernels.reference_fp8 import FP8, kv_write, restore
from tests.kernels.gpu.attention_twin import LAYER, Case

TOLERANCES = {torch.float32: 4e-6, torch.float16: 3e-2, torch.bfloat16: 3e-2}
"""Of attention over what lies in the pages: `attention_twin.TOLERANCES`; products are of bfloat16 for float16 too."""
NAN = 0x7F


@dataclass(frozen=True, slots=True)
class Pages:
    """A pool of 8 bits: `data [layers, P, 2, 16, kv_heads, D]`, `scales [layers, P, kv_heads, 16, 2]`."""

    data: Tensor
    scales: Tensor

    @classmethod
    def of(cls, case: Case) -> Pages:
        """With the case's cached tokens; all else is NaN."""
        layers, pages, _, tokens, kv_heads, _ = case.pool.shape
        device = case.pool.device
        data = torch.full(case.pool.shape, NAN, dtype=torch.uint8, device=device).view(FP8)
        scales = torch.full((layers, pages, kv_heads, tokens, 2), torch.nan, dtype=torch.bfloat16, device=device)
        row = 0
        for count, own in zip(case.batch.counts, case.batch.pages, strict=True):
            at = torch.arange(case.batch.positions[row], device=device)
            ids, offsets = torch.tensor(own, device=device)[at // 16], at % 16
            held = case.pool[LAYER, ids, :, offsets]
            kv_write(data[LAYER], scales[LAYER], held[:, 0], held[:, 1], ids, offsets)
            row += count
        return cls(data, scales)

    def restored(self) -> Tensor:
        """Of the layer in use, in float64: `[P, 2, 16, kv_heads, D]`."""
        return restore(self.data[LAYER], self.scales[LAYER], torch.float64)

    def attention(self, case: Case, shape: AttentionShape | None = None) -> TritonAttention:
        shape = shape or fp8_shape(case)
        scratch = DecodeScratch.of(shape, case.pool.device)
        return attention_of_step(self.data, case.batch, shape, case.tables, scratch, self.scales)


def fp8_shape(case: Case, processors: int = 2) -> AttentionShape:
    return AttentionShape.of(case.sizes, case.pool.dtype, (9, 0), processors, FP8)
