"""Attention of one new token a row over its own pages, split over programs by work (`decode_work`).

Twin: `reference.paged_decode`. The grid is as large as the card, whatever the batch: a program goes through its items,
each a run of pages of one row. The query heads of one key-value head are the rows of the tensor cores' tile, so its
keys and values are read once. A row in one piece goes straight to the output; of a row in several, every program
leaves its sums in float32, and the last to arrive adds them in the order of the pieces: no second launch, no atomics
on data, the same bits every time."""

from __future__ import annotations

import triton
import triton.language as tl

from lorafleet_kernels.gpu.attention.decode_work import ITEM
from lorafleet_kernels.gpu.forms.attention import GROUP_TILE, PAGE_TOKENS, SHIPPED_SIZES
from lorafleet_kernels.gpu.forms.attention_candidates import decode_forms
from lorafleet_kernels.gpu.kernels.dependence import LINE, fetch, let_next_start, wait_for_those_before
from lorafleet_kernels.gpu.kernels.last_arriver import arrives_last
from lorafleet_kernels.gpu.specialization import Specialization, also_dependent


@triton.jit
def _piece(
    queries, pool, pages, begin, tokens, page_stride, half_stride, token_stride, scale,
    SIZE: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Online softmax over `tokens` tokens from `pages[begin]` on: maxima (of scores · scale), sums, weighted values."""
    best = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    mixed = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    for start in range(0, tokens, BLOCK_N):
        at = start + n
        live = at < tokens
        ids = tl.load(pages + begin + at // PAGE, mask=live, other=0).to(tl.int64)
        rows = ids * page_stride + (at % PAGE).to(tl.int64) * token_stride
        there = pool + rows[:, None] + d[None, :]
        # What lies beyond the context may be anything, and 0 · NaN is NaN: values are masked, not only scores.
        mask = live[:, None]
        if BLOCK_D != SIZE:
            mask = mask & (d < SIZE)[None, :]
        keys = tl.load(there, mask=mask, other=0.0)
        values = tl.load(there + half_stride, mask=mask, other=0.0)
        if UPCAST:
            keys = keys.to(tl.float32)
            values = values.to(tl.float32)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        scores = tl.where(live[None, :], scores * scale, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp2(scores - new_best[:, None])
        fade = tl.exp2(best - new_best)
        total = total * fade + tl.sum(weights, 1)
        mixed = mixed * fade[:, None]
        mixed = tl.dot(weights.to(values.dtype), values, mixed, input_precision="ieee")
        best = new_best
    return best, total, mixed


@triton.jit
def added_up(
    sums, stats, first, step, pieces, g, group, columns, mask, SIZE: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What all pieces of a row make of some columns: `first` is the first piece's first head among the sums, and `step`
    heads further is the next's."""
    best = tl.full([BLOCK_G], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    mixed = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for other in range(pieces):
        theirs = first + other * step + g
        # From L2: another processor wrote them.
        their_best = tl.load(stats + theirs * 2, mask=g < group, other=0.0, cache_modifier=".cg")
        their_total = tl.load(stats + theirs * 2 + 1, mask=g < group, other=1.0, cache_modifier=".cg")
        their_sums = tl.load(
            sums + theirs[:, None] * SIZE + columns[None, :], mask=mask, other=0.0, cache_modifier=".cg"
        )
        new_best = tl.maximum(best, their_best)
        fade = tl.exp2(best - new_best)
        gain = tl.exp2(their_best - new_best)
        total = total * fade + their_total * gain
        mixed = mixed * fade[:, None] + their_sums * gain[:, None]
        best = new_best
    return mixed / total[:, None]


@triton.jit
def fetch_first(
    ours, pages, items, bounds, program, page_stride, half_stride, token_stride, WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr, PAGE: tl.constexpr, ITEM: tl.constexpr,
):  # fmt: skip
    """Into L2, the first tile of keys and values that a program is going to read: rows of WIDTH elements of what `ours`
    points at."""
    EACH: tl.constexpr = LINE // ours.dtype.element_ty.primitive_bitwidth
    item = tl.load(bounds + program)
    if item < tl.load(bounds + program + 1):
        at = tl.arange(0, BLOCK_N)
        live = at < tl.load(items + item * ITEM + 2)
        ids = tl.load(pages + tl.load(items + item * ITEM + 1) + at // PAGE, mask=live, other=0).to(tl.int64)
        rows = ours + ids * page_stride + (at % PAGE).to(tl.int64) * token_stride
        for line in tl.static_range(0, WIDTH, EACH):
            fetch(rows + line, live)
            fetch(rows + half_stride + line, live)


@triton.jit(do_not_specialize=["group"])
def paged_decode_kernel(
    q, out, pool, pages, items, bounds, sums, stats, arrived,
    group, q_stride, out_stride, page_stride, half_stride, token_stride, head_stride, scale,
    SIZE: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PAGE: tl.constexpr,
    ITEM: tl.constexpr, UPCAST: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Grid: kv_heads × programs. `sums [slots, kv_heads, group, SIZE]`, `stats [slots, kv_heads, group, 2]` float32;
    `arrived [slots, kv_heads]` int32, zeros before and after. `scale`: log2(e) / √SIZE."""
    head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    program = tl.program_id(1)
    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    mask = (g < group)[:, None] & (d < SIZE)[None, :]
    columns = (head * group + g)[:, None] * SIZE + d[None, :]
    ours = pool + head.to(tl.int64) * head_stride
    if DEPENDENT:
        fetch_first(
            ours, pages, items, bounds, program, page_stride, half_stride, token_stride, SIZE, BLOCK_N, PAGE, ITEM
        )
    wait_for_those_before(DEPENDENT)
    for item in range(tl.load(bounds + program), tl.load(bounds + program + 1)):
        here = items + item * ITEM
        row = tl.load(here).to(tl.int64)
        begin = tl.load(here + 1)
        tokens = tl.load(here + 2)
        slot = tl.load(here + 3)
        piece = tl.load(here + 4)
        pieces = tl.load(here + 5)
        queries = tl.load(q + row * q_stride + columns, mask=mask, other=0.0)
        if UPCAST:
            queries = queries.to(tl.float32)
        best, total, mixed = _piece(
            queries, ours, pages, begin, tokens, page_stride, half_stride, token_stride, scale,
            SIZE, BLOCK_G, BLOCK_D, BLOCK_N, PAGE, UPCAST,
        )  # fmt: skip
        # Not before: what the next kernel fetches would have left L2 again when it is read.
        let_next_start(DEPENDENT)
        if pieces == 1:
            result = mixed / total[:, None]
            tl.store(out + row * out_stride + columns, result.to(out.dtype.element_ty), mask=mask)
        else:
            first = (slot * kv_heads + head) * group
            mine = ((slot + piece) * kv_heads + head) * group
            tl.store(sums + (mine + g)[:, None] * SIZE + d[None, :], mixed, mask=mask)
            tl.store(stats + (mine + g) * 2, best, mask=g < group)
            tl.store(stats + (mine + g) * 2 + 1, total, mask=g < group)
            if arrives_last(arrived + slot * kv_heads + head, pieces):
                result = added_up(
                    sums, stats, first, kv_heads * group, pieces, g, group, d, mask, SIZE, BLOCK_G, BLOCK_D
                )
                tl.store(out + row * out_stride + columns, result.to(out.dtype.element_ty), mask=mask)


def specializations() -> list[Specialization]:
    """Every head size, element type and set of tiles, for groups of up to 16 and of up to 32."""
    return also_dependent(
        [
            Specialization(
                name=f"paged_decode {dtype} d{size} g{block_g} {tiles}",
                kernel=paged_decode_kernel,
                arguments={
                    **dict.fromkeys(("q", "out", "pool"), f"*{dtype}"),
                    **dict.fromkeys(("pages", "items", "bounds"), "*i32"),
                    "sums": "*fp32", "stats": "*fp32", "arrived": "*i32", "group": "i32",
                    **dict.fromkeys(("q_stride", "out_stride", "page_stride", "half_stride"), "i32"),
                    **dict.fromkeys(("token_stride", "head_stride"), "i32"),
                    "scale": "fp32",
                },
                constants={
                    "SIZE": size, "BLOCK_G": block_g, "BLOCK_D": triton.next_power_of_2(size), "BLOCK_N": tiles.tokens,
                    "PAGE": PAGE_TOKENS, "ITEM": ITEM, "UPCAST": False,
                },
                warps=tiles.warps,
                stages=tiles.stages,
                divisible=frozenset(
                    {"q_stride", "out_stride", "page_stride", "half_stride", "token_stride", "head_stride"}
                ),
                expects=frozenset({"mma", "cp.async"}),
                cards=frozenset(cards),
            )
            for dtype in ("bf16", "fp16")
            for size in SHIPPED_SIZES
            for block_g in (GROUP_TILE, 2 * GROUP_TILE)
            for tiles, cards in decode_forms(size, block_g).items()
        ]
    )  # fmt: skip
