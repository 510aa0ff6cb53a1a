"""Every operation in plain torch: the specification, and the path where there is no native one.

A step's batch is ragged: T tokens of many sequences in one flat tensor, decode rows first. H hidden, K input and O
output features, R rank, P pages, D head size. The pool of one layer is `[P, 2, 16, kv_heads, D]`: keys, then values,
of 16 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lorafleet_kernels.batch import HeadSizes
from lorafleet_kernels.masks import packed, penalties

PAGE_TOKENS = 16


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / rms(x) * weight` over the last dimension; statistics in float32, as the families' own code does."""
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
    return weight * y.to(x.dtype)


def add_rms_norm(x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x += delta` in place, then its `rms_norm`."""
    return rms_norm(x.add_(delta), weight, eps)


def argmax(logits: Tensor, allowed: Sequence[bytes | None] = ()) -> Tensor:
    """The best token of each row of `logits [n, V]`, the lowest id among equals; -1 where it is not finite, or a logit
    is NaN or inf. `allowed`, where there is any: of each row None, or the mask of what may be chosen (`masks`)."""
    masked = [row for row, mask in enumerate(allowed) if mask is not None]
    if masked:
        bits = packed([mask for mask in allowed if mask is not None], logits.shape[1])
        logits = logits.clone()
        logits[masked] += penalties(torch.from_numpy(bits).int(), logits.shape[1], logits.dtype)
    best, tokens = logits.max(dim=-1)
    return torch.where(best.isfinite(), tokens, -1)


def rotated_heads(
    qkv: Tensor, sizes: HeadSizes, cos: Tensor, sin: Tensor, q_norm: Tensor | None, k_norm: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`qkv [T, (heads + 2 · kv_heads) · D]` → q `[T, heads, D]`, k and v `[T, kv_heads, D]`; q and k with their norms,
    where there are any, and rotated by `cos, sin [T, 1, D]`."""
    heads = qkv.view(qkv.shape[0], -1, sizes.size)
    rotated, values = heads[:, : sizes.heads + sizes.kv_heads], heads[:, sizes.heads + sizes.kv_heads :]
    if q_norm is not None and k_norm is not None:
        q = rms_norm(rotated[:, : sizes.heads], q_norm, sizes.eps)
        k = rms_norm(rotated[:, sizes.heads :], k_norm, sizes.eps)
        rotated = torch.cat((q, k), dim=1)
    rotated = apply_rope(rotated, cos, sin)
    return rotated[:, : sizes.heads], rotated[:, sizes.heads :], values


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `x [T, heads, D]` by `cos, sin [T, 1, D]` (halves rotated, as in Llama's published weights)."""
    half = x.shape[-1] // 2
    rotated = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return torch.addcmul(x * cos, rotated, sin)


def silu_and_mul(x: Tensor) -> Tensor:
    """`silu(gate) * up` of `x [T, 2·I]` = gate, up → `[T, I]`."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def kv_write(pool: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """Scatter `keys, values [T, kv_heads, D]` into one layer's pool. `slots [2·T]` int64: rows of the pool seen as
    `[P·2·16, kv_heads·D]`, the keys' rows first (`kv_slots` makes them)."""
    rows = pool.view(-1, pool.shape[-2] * pool.shape[-1])
    rows.index_copy_(0, slots, torch.cat((keys, values)).view(slots.shape[0], -1))


def kv_slots(pages: Tensor, offsets: Tensor) -> Tensor:
    """Rows for `kv_write`, from each token's page id and its offset in the page: `[2·T]`."""
    key_rows = pages * (2 * PAGE_TOKENS) + offsets
    return torch.cat((key_rows, key_rows + PAGE_TOKENS))


@dataclass(frozen=True, slots=True)
class DecodeMeta:
    """B decode rows. `pages [B·M]` int64 (short tables padded with any valid id), `bias [B, 1, 1, M·16]`: 0 or -inf."""

    rows: int
    pages: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class PrefillMeta:
    """One chunk: tokens `begin .. end` of the batch at positions `start ..` of a sequence whose pages are `pages [M]`.
    `mask [count, start + count]` bool, None when the chunk starts the sequence (then it is causal)."""

    begin: int
    end: int
    start: int
    pages: Tensor
    mask: Tensor | None


def paged_decode(q: Tensor, pool: Tensor, meta: DecodeMeta, scratch: Tensor) -> Tensor:
    """Attention of one new token per row over its own pages. `q [B, heads, D]` → `[B, heads, D]`.

    The query heads of one KV head stand where a prompt has its tokens, so grouped heads need no copy of K and V.
    `scratch [2, ≥ B·M, 16, kv_heads, D]` holds the gathered pages: reused over layers and steps, it costs no faults.
    """
    rows, heads, size = q.shape
    kv_heads = pool.shape[-2]
    gathered = scratch[:, : meta.pages.shape[0]]
    for half in (0, 1):
        torch.index_select(pool[:, half], 0, meta.pages, out=gathered[half])
    keys, values = gathered.view(2, rows, -1, kv_heads, size).transpose(2, 3).unbind(0)
    out = F.scaled_dot_product_attention(
        q.view(rows, kv_heads, heads // kv_heads, size), keys, values, attn_mask=meta.bias
    )
    return out.reshape(rows, heads, size)


def paged_prefill(q: Tensor, k: Tensor, v: Tensor, pool: Tensor, meta: PrefillMeta) -> Tensor:
    """Attention of one chunk. `q [n, heads, D]`, the chunk's own `k, v [n, kv_heads, D]` → `[n, heads, D]`."""
    if meta.mask is None:
        keys, values = k, v
    else:
        length = meta.start + q.shape[0]
        pages = pool.index_select(0, meta.pages)
        keys = pages[:, 0].reshape(-1, *k.shape[1:])[:length]
        values = pages[:, 1].reshape(-1, *v.shape[1:])[:length]
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),
        keys.transpose(0, 1).unsqueeze(0),
        values.transpose(0, 1).unsqueeze(0),
        attn_mask=meta.mask,
        is_causal=meta.mask is None,
        enable_gqa=True,
    )
    return out.squeeze(0).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class LoraPart:
    """One projection of an adapter inside a fused layer: output columns `begin .. end`, `b [R, O]`, which is Bᵀ with
    the scale in it."""

    begin: int
    end: int
    b: Tensor


def lora_segment(y: Tensor, x: Tensor, a: Tensor, parts: Sequence[LoraPart]) -> None:
    """`y[:, part] += (x aᵀ)[:, its ranks] b` for the rows of one adapter, in place.

    `x [n, K]`, `y [n, O]`, `a [ΣR, K]`: the parts' A matrices, one below the other, so that they shrink in one product.
    """
    h = torch.mm(x, a.t())
    row = 0
    for part in parts:
        rank = part.b.shape[0]
        y[:, part.begin : part.end].addmm_(h[:, row : row + rank], part.b)
        row += rank


@dataclass(frozen=True, slots=True)
class StackedPart:
    """One projection of several adapters: output columns `begin .. end`, `b [slots, R, O]`."""

    begin: int
    end: int
    b: Tensor


@dataclass(frozen=True, slots=True)
class StackedGroup:
    """One fused layer of several adapters with the same ranks: `a [slots, K, ΣR]`."""

    a: Tensor
    parts: tuple[StackedPart, ...]


@dataclass(frozen=True, slots=True)
class StackedRows:
    """The first `slots` slots take part. `gather [slots · width]`: the batch row at each padded place (any row where
    there is none); `back [n]`: the place of each of the n rows. The rows are `begin .. end`, or `scattered [n]` where
    they are not adjacent."""

    slots: int
    gather: Tensor
    back: Tensor
    begin: int
    end: int
    scattered: Tensor | None


def lora_stacked(y: Tensor, x: Tensor, group: StackedGroup, rows: StackedRows) -> None:
    """`lora_segment` for many adapters at once, in place on the rows of `y [T, O]`; `x [T, K]`."""
    padded = x.index_select(0, rows.gather).view(rows.slots, -1, x.shape[1])
    h = torch.bmm(padded, group.a[: rows.slots])
    rank = 0
    for part in group.parts:
        width = part.b.shape[1]
        delta = torch.bmm(h[:, :, rank : rank + width], part.b[: rows.slots]).flatten(0, 1).index_select(0, rows.back)
        rank += width
        if rows.scattered is None:
            y[rows.begin : rows.end, part.begin : part.end] += delta
        else:
            columns = y[:, part.begin : part.end]
            columns.index_copy_(0, rows.scattered, columns.index_select(0, rows.scattered).add_(delta))
