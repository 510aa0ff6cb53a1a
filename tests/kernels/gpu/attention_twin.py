"""Batches whose pools are NaN wherever nothing may be read, and their attention in float64, one row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorafleet_kernels import reference
from lorafleet_kernels.batch import AttentionBatch, HeadSizes
from lorafleet_kernels.gpu.attention.step import AttentionShape, DecodeScratch, TritonAttention, attention_of_step

TOLERANCES = {torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of the largest value. Queries and keys are rounded up to three times before scores multiply that, then weights once:
about eight roundings, of 2^-24, 2^-12 and 2^-9 at best. Triton's interpreter cuts bfloat16 off instead: 2^-8 each."""
DTYPES = list(TOLERANCES)
LAYER = 1


@dataclass(frozen=True, slots=True)
class Case:
    """A step before its attention: cached tokens are in the pool, the step's own are not."""

    batch: AttentionBatch
    sizes: HeadSizes
    pool: Tensor
    qkv: Tensor
    tables: tuple[Tensor, Tensor]
    norms: tuple[Tensor, Tensor] | tuple[None, None]

    def shape(self, processors: int = 2) -> AttentionShape:
        return AttentionShape.of(self.sizes, self.pool.dtype, (9, 0), processors)

    def attention(self, pool: Tensor, shape: AttentionShape | None = None) -> TritonAttention:
        shape = shape or self.shape()
        return attention_of_step(pool, self.batch, shape, self.tables, DecodeScratch.of(shape, pool.device))


def a_case(
    dtype: torch.dtype, sizes: HeadSizes, decodes: Sequence[int], chunks: Sequence[tuple[int, int]],
    device: torch.device, norms: bool = False,
) -> Case:  # fmt: skip
    """`decodes`: tokens of each decode row's context, with its own; `chunks`: (cached, new) tokens of each prompt."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    sequences = [(context - 1, 1) for context in decodes] + list(chunks)
    counts = [-(-(cached + new) // 16) for cached, new in sequences]
    ids = iter((torch.randperm(sum(counts) + 3, generator=generator) + 1).tolist())
    pages = [[next(ids) for _ in range(count)] for count in counts]
    # Page 0 belongs to nobody: masked lanes may point to it, and read nothing.
    pool = torch.full((2, sum(counts) + 4, 2, 16, sizes.kv_heads, sizes.size), torch.nan, dtype=dtype)
    for own, (cached, _) in zip(pages, sequences, strict=True):
        for token in range(cached):
            pool[LAYER, own[token // 16], :, token % 16] = random(2, sizes.kv_heads, sizes.size)
    positions = [cached + i for cached, new in sequences for i in range(new)]
    batch = AttentionBatch(positions, [new for _, new in sequences], pages, len(decodes))
    angles = torch.outer(torch.arange(max(positions, default=0) + 1.0), torch.arange(sizes.size) / 7 + 0.1).unsqueeze(1)
    qkv = random(len(positions), (sizes.heads + 2 * sizes.kv_heads) * sizes.size)
    both = (random(sizes.size).to(device), random(sizes.size).to(device)) if norms else (None, None)
    tables = (angles.cos().to(dtype).to(device), angles.sin().to(dtype).to(device))
    return Case(batch, sizes, pool.to(device), qkv.to(device), tables, both)


def rotated(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of the step in float64."""
    at = torch.tensor(case.batch.positions, dtype=torch.int64, device=case.qkv.device)
    cos, sin = (table.double()[at] for table in case.tables)
    q_norm, k_norm = (None if norm is None else norm.double() for norm in case.norms)
    return reference.rotated_heads(case.qkv.double(), case.sizes, cos, sin, q_norm, k_norm)


def longhand(case: Case, forget: int = 0, scale: float = 1.0, pages: Tensor | None = None) -> Tensor:
    """`[T, heads · D]` in float64. `forget` so many of each row's last tokens, or `scale` all scores, to be wrong.
    `pages`: where all keys and values are, the step's own too, in place of the case's."""
    q, k, v = rotated(case)
    sizes = case.sizes
    out = torch.empty_like(q)
    row = 0
    for count, own in zip(case.batch.counts, case.batch.pages, strict=True):
        cached = case.batch.positions[row]
        held = (case.pool[LAYER] if pages is None else pages)[own].double()
        keys, values = held[:, 0].flatten(0, 1), held[:, 1].flatten(0, 1)
        if pages is None:
            keys = torch.cat((keys[:cached], k[row : row + count]))
            values = torch.cat((values[:cached], v[row : row + count]))
        for i in range(count):
            seen = max(1, cached + i + 1 - forget)
            for head in range(sizes.heads):
                kv_head = head // (sizes.heads // sizes.kv_heads)
                scores = keys[:seen, kv_head] @ q[row + i, head] * scale / sizes.size**0.5
                out[row + i, head] = scores.softmax(0) @ values[:seen, kv_head]
        row += count
    return out.flatten(1)


def worst(got: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest value; infinite where anything is NaN."""
    difference = (got.double() - expected).abs().max() / expected.abs().max()
    return float(difference) if bool(difference.isfinite()) else float("inf")
