"""`paged_decode` over keys and values of 8 bits (`fp8_pairs`): half the bytes, and as many products.

Twin: `reference_fp8.ReferenceFp8Attention`. Tiles are words of two features, so scores are the sum of two products, and
the weighted values come in two halves. A token's scale of keys goes to its scores, that of values to its weights.
Products are of bfloat16 whatever the model's type: elements have 4 bits, so what float16 had more of is not missed."""

from __future__ import annotations

import triton
import triton.language as tl

from lorafleet_kernels.gpu.attention.decode_work import ITEM
from lorafleet_kernels.gpu.forms.attention import GROUP_TILE, PAGE_TOKENS, SHIPPED_SIZES, half_tile
from lorafleet_kernels.gpu.forms.attention_candidates import decode_forms
from lorafleet_kernels.gpu.kernels.dependence import let_next_start, wait_for_those_before
from lorafleet_kernels.gpu.kernels.fp8_pairs import LIFT, attended, lifted, scales_of, scored
from lorafleet_kernels.gpu.kernels.last_arriver import arrives_last
from lorafleet_kernels.gpu.kernels.paged_decode import added_up, fetch_first
from lorafleet_kernels.gpu.specialization import Specialization, also_dependent
from lorafleet_kernels.reference_fp8 import FP8


@triton.jit
def _piece(
    low_queries, high_queries, pool, scales, pages, begin, tokens, kv_heads, scale,
    SIZE: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """As `paged_decode._piece`; `pool` and `scales` begin at the head. The values' halves are short of LIFT."""
    HALF: tl.constexpr = SIZE // 2
    best = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    low_mixed = tl.zeros([BLOCK_G, BLOCK_H], tl.float32)
    high_mixed = tl.zeros([BLOCK_G, BLOCK_H], tl.float32)
    n = tl.arange(0, BLOCK_N)
    h = tl.arange(0, BLOCK_H)
    for start in range(0, tokens, BLOCK_N):
        at = start + n
        live = at < tokens
        ids = tl.load(pages + begin + at // PAGE, mask=live, other=0).to(tl.int64)
        there = pool + (ids * (2 * PAGE) + at % PAGE)[:, None] * (kv_heads * HALF) + h[None, :]
        # What lies beyond the context may be anything: its words and scales are masked, not only its scores.
        mask = live[:, None]
        if BLOCK_H != HALF:
            mask = mask & (h < HALF)[None, :]
        keys = tl.load(there, mask=mask, other=0)
        values = tl.load(there + PAGE * kv_heads * HALF, mask=mask, other=0)
        both = tl.load(scales + ids * (kv_heads * PAGE) + at % PAGE, mask=live, other=0)
        key_scales, value_scales = scales_of(both)
        scores = scored(low_queries, high_queries, keys, key_scales, scale, WIDE)
        scores = tl.where(live[None, :], scores, float("-inf"))
        best, total, low_mixed, high_mixed = attended(
            scores, values, value_scales, best, total, low_mixed, high_mixed, WIDE
        )
    return best, total, low_mixed, high_mixed


@triton.jit(do_not_specialize=["group"])
def paged_decode_fp8_kernel(
    q, out, pool, scales, pages, items, bounds, sums, stats, arrived,
    group, q_stride, out_stride, scale,
    SIZE: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr,
    ITEM: tl.constexpr, WIDE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Grid and all else as `paged_decode_kernel`. `pool [P, 2, PAGE, kv_heads, SIZE / 2]` int16 words, `scales
    [P, kv_heads, PAGE]` int32, a key's and a value's bfloat16 each."""
    head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    program = tl.program_id(1)
    HALF: tl.constexpr = SIZE // 2
    g = tl.arange(0, BLOCK_G)
    h = tl.arange(0, BLOCK_H)
    mask = (g < group)[:, None] & (h < HALF)[None, :]
    columns = (head * group + g)[:, None] * SIZE + h[None, :]
    if DEPENDENT:
        words = kv_heads * HALF
        fetch_first(
            pool + head * HALF, pages, items, bounds, program, 2 * PAGE * words, PAGE * words, words,
            HALF, BLOCK_N, PAGE, ITEM,
        )  # fmt: skip
    wait_for_those_before(DEPENDENT)
    for item in range(tl.load(bounds + program), tl.load(bounds + program + 1)):
        here = items + item * ITEM
        row = tl.load(here).to(tl.int64)
        begin = tl.load(here + 1)
        tokens = tl.load(here + 2)
        slot = tl.load(here + 3)
        piece = tl.load(here + 4)
        pieces = tl.load(here + 5)
        low_queries = lifted(tl.load(q + row * q_stride + columns, mask=mask, other=0.0), WIDE)
        high_queries = lifted(tl.load(q + row * q_stride + columns + HALF, mask=mask, other=0.0), WIDE)
        best, total, low_mixed, high_mixed = _piece(
            low_queries, high_queries, pool + head * HALF, scales + head * PAGE, pages, begin, tokens, kv_heads, scale,
            SIZE, BLOCK_G, BLOCK_H, BLOCK_N, PAGE, WIDE,
        )  # fmt: skip
        let_next_start(DEPENDENT)
        if pieces == 1:
            there = out + row * out_stride + columns
            tl.store(there, (low_mixed / total[:, None] * LIFT).to(out.dtype.element_ty), mask=mask)
            tl.store(there + HALF, (high_mixed / total[:, None] * LIFT).to(out.dtype.element_ty), mask=mask)
        else:
            first = (slot * kv_heads + head) * group
            mine = ((slot + piece) * kv_heads + head) * group
            left = sums + (mine + g)[:, None] * SIZE + h[None, :]
            tl.store(left, low_mixed, mask=mask)
            tl.store(left + HALF, high_mixed, mask=mask)
            tl.store(stats + (mine + g) * 2, best, mask=g < group)
            tl.store(stats + (mine + g) * 2 + 1, total, mask=g < group)
            if arrives_last(arrived + slot * kv_heads + head, pieces):
                for half in tl.static_range(0, SIZE, HALF):
                    result = added_up(
                        sums, stats, first, kv_heads * group, pieces, g, group, half + h, mask, SIZE, BLOCK_G, BLOCK_H
                    )
                    there = out + row * out_stride + columns + half
                    tl.store(there, (result * LIFT).to(out.dtype.element_ty), mask=mask)


def specializations() -> list[Specialization]:
    """Every head size, element type and set of tiles, for groups of up to 16 and of up to 32."""
    return also_dependent(
        [
            Specialization(
                name=f"paged_decode_fp8 {dtype} d{size} g{block_g} {tiles}",
                kernel=paged_decode_fp8_kernel,
                arguments={
                    **dict.fromkeys(("q", "out"), f"*{dtype}"), "pool": "*i16", "scales": "*i32",
                    **dict.fromkeys(("pages", "items", "bounds"), "*i32"),
                    "sums": "*fp32", "stats": "*fp32", "arrived": "*i32",
                    **dict.fromkeys(("group", "q_stride", "out_stride"), "i32"), "scale": "fp32",
                },
                constants={
                    "SIZE": size, "BLOCK_G": block_g, "BLOCK_H": half_tile(size), "BLOCK_N": tiles.tokens,
                    "PAGE": PAGE_TOKENS, "ITEM": ITEM, "WIDE": False,
                },
                warps=tiles.warps,
                stages=tiles.stages,
                divisible=frozenset({"q_stride", "out_stride"}),
                expects=frozenset({"mma", "cp.async"}),
                cards=frozenset(cards),
            )
            for dtype in ("bf16", "fp16")
            for size in SHIPPED_SIZES
            for block_g in (GROUP_TILE, 2 * GROUP_TILE)
            for tiles, cards in decode_forms(size, block_g, FP8).items()
        ]
    )  # fmt: skip
