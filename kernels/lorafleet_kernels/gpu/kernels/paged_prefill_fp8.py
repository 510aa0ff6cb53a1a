"""`paged_prefill` over keys and values of 8 bits (`fp8_pairs`), with two products for each of its own, of half the
features, as `paged_decode_fp8` has. Twin: `reference_fp8.ReferenceFp8Attention`."""

from __future__ import annotations

import triton
import triton.language as tl

from lorafleet_kernels.gpu.attention.prefill_work import PREFILL_ITEM
from lorafleet_kernels.gpu.forms.attention import PAGE_TOKENS, SHIPPED_SIZES, half_tile
from lorafleet_kernels.gpu.forms.attention_candidates import prefill_forms
from lorafleet_kernels.gpu.kernels.fp8_pairs import LIFT, attended, lifted, scales_of, scored
from lorafleet_kernels.gpu.specialization import Specialization
from lorafleet_kernels.reference_fp8 import FP8


@triton.jit
def _over(
    best, total, low_mixed, high_mixed, low_queries, high_queries, positions, begin, end, limit, pool, scales, pages,
    kv_heads, scale, SIZE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr,
    EDGE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """As `paged_prefill._over`; `pool` and `scales` begin at the head. The values' halves are short of LIFT."""
    HALF: tl.constexpr = SIZE // 2
    n = tl.arange(0, BLOCK_N)
    h = tl.arange(0, BLOCK_H)
    for start in range(begin, end, BLOCK_N):
        at = start + n
        # What lies beyond the context may be anything: its words and scales are masked, not only its scores.
        if EDGE:
            ids = tl.load(pages + at // PAGE, mask=at < limit, other=0).to(tl.int64)
            both = tl.load(scales + ids * (kv_heads * PAGE) + at % PAGE, mask=at < limit, other=0)
        else:
            ids = tl.load(pages + at // PAGE).to(tl.int64)
            both = tl.load(scales + ids * (kv_heads * PAGE) + at % PAGE)
        there = pool + (ids * (2 * PAGE) + at % PAGE)[:, None] * (kv_heads * HALF) + h[None, :]
        if EDGE and BLOCK_H != HALF:
            keys = tl.load(there, mask=(at < limit)[:, None] & (h < HALF)[None, :], other=0)
            values = tl.load(
                there + PAGE * kv_heads * HALF, mask=(at < limit)[:, None] & (h < HALF)[None, :], other=0
            )
        elif EDGE:
            keys = tl.load(there, mask=(at < limit)[:, None], other=0)
            values = tl.load(there + PAGE * kv_heads * HALF, mask=(at < limit)[:, None], other=0)
        elif BLOCK_H != HALF:
            keys = tl.load(there, mask=(h < HALF)[None, :], other=0)
            values = tl.load(there + PAGE * kv_heads * HALF, mask=(h < HALF)[None, :], other=0)
        else:
            keys = tl.load(there)
            values = tl.load(there + PAGE * kv_heads * HALF)
        key_scales, value_scales = scales_of(both)
        scores = scored(low_queries, high_queries, keys, key_scales, scale, WIDE)
        if EDGE:
            scores = tl.where(at[None, :] <= positions[:, None], scores, float("-inf"))
        best, total, low_mixed, high_mixed = attended(
            scores, values, value_scales, best, total, low_mixed, high_mixed, WIDE
        )
    return best, total, low_mixed, high_mixed


@triton.jit(do_not_specialize=["group"])
def paged_prefill_fp8_kernel(
    q, out, pool, scales, pages, items,
    group, q_stride, out_stride, scale,
    SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr,
    ITEM: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Grid as `paged_prefill_kernel`, `pool` and `scales` as `paged_decode_fp8_kernel`."""
    head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    here = items + tl.program_id(1) * ITEM
    count = tl.load(here + 1)
    if count == 0:
        return
    HALF: tl.constexpr = SIZE // 2
    row = tl.load(here).to(tl.int64)
    position = tl.load(here + 2)
    ours = pages + tl.load(here + 3)
    m = tl.arange(0, BLOCK_M)
    h = tl.arange(0, BLOCK_H)
    token = m // group
    mask = (token < count)[:, None] & (h < HALF)[None, :]
    columns = (head * group + m % group)[:, None] * SIZE + h[None, :]
    asked = q + (row + token)[:, None] * q_stride + columns
    low_queries = lifted(tl.load(asked, mask=mask, other=0.0), WIDE)
    high_queries = lifted(tl.load(asked + HALF, mask=mask, other=0.0), WIDE)
    positions = position + token
    limit = position + count
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    low_mixed = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    high_mixed = tl.zeros([BLOCK_M, BLOCK_H], tl.float32)
    pool += head * HALF
    scales += head * PAGE
    # Up to here every query sees every token.
    seen = (position + 1) // BLOCK_N * BLOCK_N
    best, total, low_mixed, high_mixed = _over(
        best, total, low_mixed, high_mixed, low_queries, high_queries, positions, 0, seen, limit, pool, scales, ours,
        kv_heads, scale, SIZE, BLOCK_H, BLOCK_N, PAGE, False, WIDE,
    )  # fmt: skip
    best, total, low_mixed, high_mixed = _over(
        best, total, low_mixed, high_mixed, low_queries, high_queries, positions, seen, limit, limit, pool, scales,
        ours, kv_heads, scale, SIZE, BLOCK_H, BLOCK_N, PAGE, True, WIDE,
    )  # fmt: skip
    there = out + (row + token)[:, None] * out_stride + columns
    tl.store(there, (low_mixed / total[:, None] * LIFT).to(out.dtype.element_ty), mask=mask)
    tl.store(there + HALF, (high_mixed / total[:, None] * LIFT).to(out.dtype.element_ty), mask=mask)


def specializations() -> list[Specialization]:
    """Every head size, element type and set of tiles. Groups are given at run time."""
    return [
        Specialization(
            name=f"paged_prefill_fp8 {dtype} d{size} {tiles}",
            kernel=paged_prefill_fp8_kernel,
            arguments={
                **dict.fromkeys(("q", "out"), f"*{dtype}"), "pool": "*i16",
                **dict.fromkeys(("scales", "pages", "items"), "*i32"),
                **dict.fromkeys(("group", "q_stride", "out_stride"), "i32"), "scale": "fp32",
            },
            constants={
                "SIZE": size, "BLOCK_M": tiles.rows, "BLOCK_H": half_tile(size), "BLOCK_N": tiles.tokens,
                "PAGE": PAGE_TOKENS, "ITEM": PREFILL_ITEM, "WIDE": False,
            },
            warps=tiles.warps,
            stages=tiles.stages,
            divisible=frozenset({"q_stride", "out_stride"}),
            expects=frozenset({"mma", "cp.async"}),
            cards=frozenset(cards),
        )
        for dtype in ("bf16", "fp16")
        for size in SHIPPED_SIZES
        for tiles, cards in prefill_forms(size, FP8).items()
    ]  # fmt: skip
