"""Attention of prompts' chunks over their pages: what was cached, and the chunk itself, which was written before.

Twin: `reference.paged_prefill`. A program takes some tokens of one chunk and the query heads of one key-value head:
row r of its tile is token r // group, head r % group, so a short chunk of grouped heads still fills the tensor cores,
and keys and values are read once for the group. (`prefill_work` lists the programs; FlashAttention-2, Dao 2023,
algorithm 1.)"""

from __future__ import annotations

import triton
import triton.language as tl

from lorafleet_kernels.gpu.attention.prefill_work import PREFILL_ITEM
from lorafleet_kernels.gpu.forms.attention import PAGE_TOKENS, SHIPPED_SIZES
from lorafleet_kernels.gpu.forms.attention_candidates import prefill_forms
from lorafleet_kernels.gpu.specialization import Specialization


@triton.jit
def _over(
    best, total, mixed, queries, positions, begin, end, limit, pool, pages, page_stride, half_stride, token_stride,
    scale, SIZE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr, EDGE: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Goes on with the online softmax over tokens `begin .. end`; EDGE: where not every query sees every token."""
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    for start in range(begin, end, BLOCK_N):
        at = start + n
        if EDGE:
            ids = tl.load(pages + at // PAGE, mask=at < limit, other=0).to(tl.int64)
        else:
            ids = tl.load(pages + at // PAGE).to(tl.int64)
        there = pool + (ids * page_stride + (at % PAGE).to(tl.int64) * token_stride)[:, None] + d[None, :]
        # What lies beyond the context may be anything, and 0 · NaN is NaN: values are masked, not only scores.
        if EDGE and BLOCK_D != SIZE:
            keys = tl.load(there, mask=(at < limit)[:, None] & (d < SIZE)[None, :], other=0.0)
            values = tl.load(there + half_stride, mask=(at < limit)[:, None] & (d < SIZE)[None, :], other=0.0)
        elif EDGE:
            keys = tl.load(there, mask=(at < limit)[:, None], other=0.0)
            values = tl.load(there + half_stride, mask=(at < limit)[:, None], other=0.0)
        elif BLOCK_D != SIZE:
            keys = tl.load(there, mask=(d < SIZE)[None, :], other=0.0)
            values = tl.load(there + half_stride, mask=(d < SIZE)[None, :], other=0.0)
        else:
            keys = tl.load(there)
            values = tl.load(there + half_stride)
        if UPCAST:
            keys = keys.to(tl.float32)
            values = values.to(tl.float32)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        if EDGE:
            scores = tl.where(at[None, :] <= positions[:, None], scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - new_best[:, None])
        fade = tl.exp2(best - new_best)
        total = total * fade + tl.sum(weights, 1)
        mixed = tl.dot(weights.to(values.dtype), values, mixed * fade[:, None], input_precision="ieee")
        best = new_best
    return best, total, mixed


@triton.jit(do_not_specialize=["group"])
def paged_prefill_kernel(
    q, out, pool, pages, items,
    group, q_stride, out_stride, page_stride, half_stride, token_stride, head_stride, scale,
    SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr,
    ITEM: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid: kv_heads × items. `scale`: log2(e) / √SIZE."""
    head = tl.program_id(0)
    here = items + tl.program_id(1) * ITEM
    count = tl.load(here + 1)
    if count == 0:
        return
    row = tl.load(here).to(tl.int64)
    position = tl.load(here + 2)
    ours = pages + tl.load(here + 3)
    m = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    token = m // group
    mask = (token < count)[:, None] & (d < SIZE)[None, :]
    columns = (head * group + m % group)[:, None] * SIZE + d[None, :]
    queries = tl.load(q + (row + token)[:, None] * q_stride + columns, mask=mask, other=0.0)
    if UPCAST:
        queries = queries.to(tl.float32)
    positions = position + token
    limit = position + count
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    pool += head.to(tl.int64) * head_stride
    # Up to here every query sees every token.
    seen = (position + 1) // BLOCK_N * BLOCK_N
    best, total, mixed = _over(
        best, total, mixed, queries, positions, 0, seen, limit, pool, ours, page_stride, half_stride, token_stride,
        scale, SIZE, BLOCK_D, BLOCK_N, PAGE, False, UPCAST,
    )  # fmt: skip
    best, total, mixed = _over(
        best, total, mixed, queries, positions, seen, limit, limit, pool, ours, page_stride, half_stride, token_stride,
        scale, SIZE, BLOCK_D, BLOCK_N, PAGE, True, UPCAST,
    )  # fmt: skip
    result = (mixed / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + (row + token)[:, None] * out_stride + columns, result, mask=mask)


def specializations() -> list[Specialization]:
    """Every head size, element type and set of tiles. Groups are given at run time."""
    strides = ("q_stride", "out_stride", "page_stride", "half_stride", "token_stride", "head_stride")
    return [
        Specialization(
            name=f"paged_prefill {dtype} d{size} {tiles}",
            kernel=paged_prefill_kernel,
            arguments={
                **dict.fromkeys(("q", "out", "pool"), f"*{dtype}"),
                **dict.fromkeys(("pages", "items"), "*i32"),
                **dict.fromkeys(("group", *strides), "i32"),
                "scale": "fp32",
            },
            constants={
                "SIZE": size, "BLOCK_M": tiles.rows, "BLOCK_D": triton.next_power_of_2(size), "BLOCK_N": tiles.tokens,
                "PAGE": PAGE_TOKENS, "ITEM": PREFILL_ITEM, "UPCAST": False,
            },
            warps=tiles.warps,
            stages=tiles.stages,
            divisible=frozenset(strides),
            expects=frozenset({"mma", "cp.async"}),
            cards=frozenset(cards),
        )
        for dtype in ("bf16", "fp16")
        for size in SHIPPED_SIZES
        for tiles, cards in prefill_forms(size).items()
    ]  # fmt: skip
