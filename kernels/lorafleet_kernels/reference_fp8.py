"""Keys and values of 8 bits in plain torch: the specification of how they lie in the pool, and its attention.

Elements are e4m3 with a scale for every token, head and half of a page, in bfloat16 (`docs/adr/0021` has figures):
- a scale for the model or a tensor (vLLM's and SGLang's default is 1.0) loses what is below 2^-9 and cuts off what is
  beyond 448; it wants calibration, which every adapter would shift;
- one for a page would have to change, and its elements with it, when a later token is larger; pages of a prefix are
  shared and must not change. One for a token and head is written with the token, once, by the program that has it;
- a head of keys is ruled by its few largest channels, so it matters how they are rounded: of four scales, which put the
  largest element on 448, 384, 320 or 256, the one that changes the head least is taken.
They lie beside the pool, not in it: pages keep their size, and rows their alignment. They take 2 bytes beside a head's
D. A head that is not finite has a scale that is NaN, so an overflow is seen in the logits as it is without fp8.

Every key and value is read from the pages, a chunk's own too, so what a prompt gives does not depend on how much of it
was cached.

Shapes as in `reference`; of one layer: `data [P, 2, 16, kv_heads, D]` float8_e4m3fn, where a head's features are in the
order 0, D/2, 1, D/2 + 1, ...; `scales [P, kv_heads, 16, 2]` bfloat16, of a token's key and value."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lorafleet_kernels import reference as ops
from lorafleet_kernels.batch import AttentionBatch, HeadSizes
from lorafleet_kernels.reference_attention import Scratch, decode_meta, pages_of_tokens, prefill_metas

FP8 = torch.float8_e4m3fn
FP8_SIZE = 16
"""Heads of 8 bits are multiples of it, so that each begins at 16 bytes."""
LARGEST = 448.0
TOPS = (448.0, 384.0, 320.0, 256.0)
"""Where scales put a head's largest element: what e4m3 has at the upper end."""
LEAST_SCALE, MOST_SCALE = 2.0**-60, 2.0**60
"""Beyond what any model computes, and within what float32 can multiply by two of them."""


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x [..., D]` → elements `[..., D]` in the order of the pool, and scales `[...]` bfloat16."""
    wide = x.float()
    largest = wide.abs().amax(-1)
    least = torch.full_like(largest, torch.inf)
    scales = torch.ones_like(largest)
    for top in TOPS:
        scale = (largest * (1 / top)).clamp(LEAST_SCALE, MOST_SCALE).bfloat16().float()
        scaled = wide * (1 / scale).unsqueeze(-1)
        error = (_elements(scaled).float() - scaled).pow(2).sum(-1) * (1 / top**2)
        scales = torch.where(error < least, scale, scales)
        least = torch.minimum(error, least)
    elements = _elements(wide * (1 / scales).unsqueeze(-1)).view(torch.uint8)
    scales = torch.where(largest.isfinite(), scales, torch.nan)
    half = x.shape[-1] // 2
    pairs = torch.stack((elements[..., :half], elements[..., half:]), -1)
    return pairs.flatten(-2).view(FP8), scales.bfloat16()


def _elements(x: Tensor) -> Tensor:
    return x.clamp(-LARGEST, LARGEST).to(FP8)


def restore(data: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Pages `data [N, 2, 16, kv_heads, D]`, `scales [N, kv_heads, 16, 2]` → `[N, 2, 16, kv_heads, D]`, features in
    their own order."""
    pairs = data.float().view(*data.shape[:-1], -1, 2) * scales.permute(0, 3, 2, 1).float()[..., None, None]
    return torch.cat((pairs[..., 0], pairs[..., 1]), -1).to(dtype)


def kv_write(data: Tensor, scales: Tensor, keys: Tensor, values: Tensor, pages: Tensor, offsets: Tensor) -> None:
    """`keys, values [T, kv_heads, D]` to `offsets [T]` of `pages [T]` of one layer."""
    data = data.view(torch.uint8)  # few operations know the type
    for kind, x in enumerate((keys, values)):
        elements, own = quantise(x)
        data[pages, kind, offsets] = elements.view(torch.uint8)
        scales[pages, :, offsets, kind] = own


class ReferenceFp8Attention:
    """Callable as `operations.Attention`."""

    def __init__(
        self, pool: Tensor, scales: Tensor, batch: AttentionBatch, sizes: HeadSizes, tables: tuple[Tensor, Tensor]
    ) -> None:
        """`pool` and `scales`: of all layers."""
        device = pool.device
        self._pool, self._kv_scales, self._sizes = pool, scales, sizes
        positions = torch.tensor(batch.positions, device=device)
        self._cos, self._sin = tables[0][positions], tables[1][positions]
        self._pages = torch.tensor(pages_of_tokens(batch), device=device)
        self._offsets = positions % ops.PAGE_TOKENS
        # The step's pages alone, in the model's type, are a pool for the usual operations.
        mine = sorted({page for pages in batch.pages for page in pages})
        number = {page: index for index, page in enumerate(mine)}
        batch = replace(batch, pages=[[number[page] for page in pages] for pages in batch.pages])
        self._mine = torch.tensor(mine, device=device)
        self._live = _live(batch, len(mine)).to(device)
        self._decode = decode_meta(batch, tables[0].dtype, device)
        self._prefill = prefill_metas(batch, device, from_pages=True)
        self._scratch = Scratch()

    def __call__(self, layer: int, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None) -> Tensor:
        data, scales = self._pool[layer], self._kv_scales[layer]
        q, k, v = ops.rotated_heads(qkv, self._sizes, self._cos, self._sin, q_norm, k_norm)
        kv_write(data, scales, k, v, self._pages, self._offsets)
        pool = restore(data.view(torch.uint8)[self._mine].view(FP8), scales[self._mine], qkv.dtype)
        pool = torch.where(self._live, pool, 0)  # where nothing was written an adapter's weights may have left NaN
        out = torch.empty_like(q)
        if self._decode is not None:
            scratch = self._scratch.pages(self._decode.pages.shape[0], pool.unsqueeze(0))
            rows = self._decode.rows
            out[:rows] = ops.paged_decode(q[:rows], pool, self._decode, scratch)
        for meta in self._prefill:
            chunk = slice(meta.begin, meta.end)
            out[chunk] = ops.paged_prefill(q[chunk], k[chunk], v[chunk], pool, meta)
        return out.flatten(1)


def _live(batch: AttentionBatch, pages: int) -> Tensor:
    """Which tokens of the step's pages have keys and values, once it has written its own: `[pages, 1, 16, 1, 1]`."""
    live = torch.zeros(pages, ops.PAGE_TOKENS, dtype=torch.bool)
    row = 0
    for count, own in zip(batch.counts, batch.pages, strict=True):
        row += count
        at = torch.arange(batch.positions[row - 1] + 1)
        live[torch.tensor(own)[at // ops.PAGE_TOKENS], at % ops.PAGE_TOKENS] = True
    return live[:, None, :, None, None]
