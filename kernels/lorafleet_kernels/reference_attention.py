"""A step's attention in plain torch: its metadata, built once, and the reference's operations on every layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lorafleet_kernels import reference as ops
from lorafleet_kernels.batch import AttentionBatch, HeadSizes


class Scratch:
    """Memory for gathered pages, reused over layers and steps: it costs no page faults then."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def pages(self, count: int, like: Tensor) -> Tensor:
        """`[2, count, 16, kv_heads, D]` of the type of `like [layers, P, 2, 16, kv_heads, D]`."""
        shape = (2, count, *like.shape[3:])
        size = math.prod(shape)
        if self._memory.dtype != like.dtype or self._memory.device != like.device or self._memory.numel() < size:
            self._memory = torch.empty(size + size // 4, dtype=like.dtype, device=like.device)
        return self._memory[:size].view(shape)


class ReferenceAttention:
    """Callable as `operations.Attention`."""

    def __init__(
        self, pool: Tensor, batch: AttentionBatch, sizes: HeadSizes, tables: tuple[Tensor, Tensor], scratch: Scratch
    ) -> None:
        self._pool = pool
        self._sizes = sizes
        device = pool.device
        positions = torch.tensor(batch.positions, device=device)
        self._cos, self._sin = tables[0][positions], tables[1][positions]
        self._slots = ops.kv_slots(torch.tensor(pages_of_tokens(batch), device=device), positions % ops.PAGE_TOKENS)
        self._decode = decode_meta(batch, pool.dtype, device)
        self._prefill = prefill_metas(batch, device)
        self._scratch = scratch.pages(self._decode.pages.shape[0] if self._decode else 0, pool)

    def __call__(self, layer: int, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None) -> Tensor:
        pool = self._pool[layer]
        q, k, v = ops.rotated_heads(qkv, self._sizes, self._cos, self._sin, q_norm, k_norm)
        ops.kv_write(pool, k, v, self._slots)
        if self._decode is not None and not self._prefill:
            return ops.paged_decode(q, pool, self._decode, self._scratch).flatten(1)
        out = torch.empty_like(q)
        if self._decode is not None:
            rows = self._decode.rows
            out[:rows] = ops.paged_decode(q[:rows], pool, self._decode, self._scratch)
        for meta in self._prefill:
            chunk = slice(meta.begin, meta.end)
            out[chunk] = ops.paged_prefill(q[chunk], k[chunk], v[chunk], pool, meta)
        return out.flatten(1)


def pages_of_tokens(batch: AttentionBatch) -> list[int]:
    """The page of each of the step's tokens."""
    owners = (pages for count, pages in zip(batch.counts, batch.pages, strict=True) for _ in range(count))
    return [pages[position // ops.PAGE_TOKENS] for position, pages in zip(batch.positions, owners, strict=True)]


def decode_meta(batch: AttentionBatch, dtype: torch.dtype, device: torch.device) -> ops.DecodeMeta | None:
    """Of the step's decode rows; `dtype`: that of queries. None where there are none."""
    rows = batch.decodes
    if not rows:
        return None
    width = max(len(pages) for pages in batch.pages[:rows])
    table: list[int] = []
    for pages in batch.pages[:rows]:
        table += [*pages, *[pages[-1]] * (width - len(pages))]
    lengths = torch.tensor(batch.positions[:rows], device=device).unsqueeze(1) + 1
    beyond = torch.arange(width * ops.PAGE_TOKENS, device=device).unsqueeze(0) >= lengths
    bias = torch.zeros(beyond.shape, dtype=dtype, device=device).masked_fill_(beyond, float("-inf"))
    return ops.DecodeMeta(rows, torch.tensor(table, device=device), bias[:, None, None, :])


def prefill_metas(
    batch: AttentionBatch, device: torch.device, *, from_pages: bool = False
) -> list[ops.PrefillMeta]:
    """Of the step's chunks. `from_pages`: the first of a prompt is read from its pages too."""
    metas: list[ops.PrefillMeta] = []
    begin = batch.decodes
    for count, pages in zip(batch.counts[batch.decodes :], batch.pages[batch.decodes :], strict=True):
        start = batch.positions[begin]
        mask = None
        if start or from_pages:
            after = torch.arange(start, start + count, device=device).unsqueeze(1)
            mask = torch.arange(start + count, device=device).unsqueeze(0) <= after
        metas.append(ops.PrefillMeta(begin, begin + count, start, torch.tensor(pages, device=device), mask))
        begin += count
    return metas
