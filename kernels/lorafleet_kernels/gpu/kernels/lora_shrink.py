"""`planes[j, t, :ΣR] = x[t, part j of K] · A[:, part j]ᵀ` in float32, for the rows of many adapters at once.

The expand kernel sums the planes in their order: no atomics and no memset, and the same bits every time. A program
takes every `lanes`-th block of ranks, so no grid depends on a rank; programs of empty work items return at once."""

from __future__ import annotations

import triton
import triton.language as tl

from lorafleet_kernels.gpu.forms.lora import TYPES, row_shrinks, tile_shrinks
from lorafleet_kernels.gpu.forms.weight_types import stored_beside
from lorafleet_kernels.gpu.kernels.dependence import (
    LINES_AHEAD,
    fetch_rows,
    let_next_start,
    wait_for_those_before,
)
from lorafleet_kernels.gpu.kernels.lora_pages import adapter_entry, in_pool, rank_scales, weight_values
from lorafleet_kernels.gpu.specialization import Specialization, also_dependent


@triton.jit
def _fetch_first(
    pool, table, begin, stride, ranks, first_tile, last_tile, K,
    PAGE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Into L2, what a program reads of A first: its inputs of the first block of ranks that its lane has."""
    done = tl.program_id(1) * BLOCK_N
    end = tl.minimum(last_tile * BLOCK_K, K)
    fetch_rows(
        pool, table, begin + done * stride, stride, ranks - done, first_tile * BLOCK_K, end, PAGE, BLOCK_N, LINES_AHEAD
    )


@triton.jit(do_not_specialize=["plane_stride", "planes_width", "layout_stride"])
def shrink_tiles(
    x, pool, planes, work, adapters, pages, layouts,
    x_stride, plane_stride, planes_width, layout_stride, K,
    PAGE: tl.constexpr, GRAIN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, UPCAST: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Grid (work items, lanes, splits). `x [T, K]`; `planes [splits, T, planes_width]`; BLOCK_K ≤ GRAIN."""
    let_next_start(DEPENDENT)
    item = tl.program_id(0)
    count = tl.load(work + 3 * item + 1)
    if count == 0:
        wait_for_those_before(DEPENDENT)
        return
    first, adapter = tl.load(work + 3 * item), tl.load(work + 3 * item + 2)
    table, entry = adapter_entry(adapters, pages, layouts, layout_stride, adapter)
    begin, ranks = tl.multiple_of(tl.load(entry), 16), tl.load(entry + 1)
    stride = tl.cdiv(K, GRAIN) * GRAIN

    tiles = tl.cdiv(K, BLOCK_K)
    share = tl.cdiv(tiles, tl.num_programs(2))
    first_tile = tl.program_id(2) * share
    last_tile = tl.minimum(first_tile + share, tiles)
    if DEPENDENT:
        _fetch_first(pool, table, begin, stride, ranks, first_tile, last_tile, K, PAGE, BLOCK_N, BLOCK_K)
    wait_for_those_before(DEPENDENT)

    rows = tl.arange(0, BLOCK_M)
    own = rows < count
    x_rows = x + (first + rows).to(tl.int64)[:, None] * x_stride
    out = planes + tl.program_id(2) * plane_stride + (first + rows)[:, None] * planes_width
    for block in range(tl.program_id(1), tl.cdiv(ranks, BLOCK_N), tl.num_programs(1)):
        n = block * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for tile in range(first_tile, last_tile):
            k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
            inputs = tl.load(x_rows + k[None, :], mask=own[:, None] & (k[None, :] < K), other=0.0)
            places = in_pool(table, begin + n * stride + tile * BLOCK_K, n < ranks, PAGE)
            a = tl.load(
                pool + places[:, None] + tl.arange(0, BLOCK_K)[None, :],
                mask=(n[:, None] < ranks) & (k[None, :] < K), other=0.0,
            )  # fmt: skip
            if UPCAST:
                inputs = inputs.to(tl.float32)
            acc = tl.dot(inputs, tl.trans(weight_values(a, inputs.dtype)), acc)
        if pool.dtype.element_ty.primitive_bitwidth == 8:
            acc *= rank_scales(pool, table, begin, ranks, n, PAGE)[None, :]
        tl.store(out + n[None, :], acc, mask=own[:, None] & (n[None, :] < ranks))


@triton.jit(do_not_specialize=["plane_stride", "planes_width", "layout_stride"])
def shrink_rows(
    x, pool, planes, row_adapters, adapters, pages, layouts,
    x_stride, plane_stride, planes_width, layout_stride, K,
    PAGE: tl.constexpr, GRAIN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The same with grid (rows, lanes, splits): where hardly two rows have the same adapter, a tile of them would be
    padding. Bytes bound it, not products, so it does without tensor cores."""
    let_next_start(DEPENDENT)
    row = tl.program_id(0)
    adapter = tl.load(row_adapters + row)
    if adapter < 0:
        wait_for_those_before(DEPENDENT)
        return
    table, entry = adapter_entry(adapters, pages, layouts, layout_stride, adapter)
    begin, ranks = tl.multiple_of(tl.load(entry), 16), tl.load(entry + 1)
    stride = tl.cdiv(K, GRAIN) * GRAIN

    tiles = tl.cdiv(K, BLOCK_K)
    share = tl.cdiv(tiles, tl.num_programs(2))
    first_tile = tl.program_id(2) * share
    last_tile = tl.minimum(first_tile + share, tiles)
    if DEPENDENT:
        _fetch_first(pool, table, begin, stride, ranks, first_tile, last_tile, K, PAGE, BLOCK_N, BLOCK_K)
    wait_for_those_before(DEPENDENT)

    x_row = x + row.to(tl.int64) * x_stride
    out = planes + tl.program_id(2) * plane_stride + row * planes_width
    for block in range(tl.program_id(1), tl.cdiv(ranks, BLOCK_N), tl.num_programs(1)):
        n = block * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for tile in tl.range(first_tile, last_tile, num_stages=STAGES):
            k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
            inputs = tl.load(x_row + k, mask=k < K, other=0.0).to(tl.float32)
            places = in_pool(table, begin + n * stride + tile * BLOCK_K, n < ranks, PAGE)
            a = tl.load(
                pool + places[:, None] + tl.arange(0, BLOCK_K)[None, :],
                mask=(n[:, None] < ranks) & (k[None, :] < K), other=0.0,
            )  # fmt: skip
            acc += weight_values(a, tl.float32) * inputs[None, :]
        h = tl.sum(acc, axis=1)
        if pool.dtype.element_ty.primitive_bitwidth == 8:
            h *= rank_scales(pool, table, begin, ranks, n, PAGE)
        tl.store(out + n, h, mask=n < ranks)


def specializations() -> list[Specialization]:
    """Every form that `forms.lora` can choose, for pages of 2¹⁵ elements (8 heads of keys and values of 128); one of
    them also for pages of no power of two, and for a model of odd widths."""
    forms = []
    for dtype, stored in ((t, stored) for t in TYPES for stored in stored_beside(t)):
        for tiles in tile_shrinks():
            for page, divisible in ((1 << 15, True), (5 << 13, True), (1 << 12, False)):
                if page != 1 << 15 and (tiles != tile_shrinks()[0] or stored.label):
                    continue
                forms.append(
                    Specialization(
                        f"shrink_tiles {dtype} {tiles} page={page}{'' if divisible else ' odd'}{stored.label}",
                        shrink_tiles,
                        _arguments(dtype, stored.pointer, "work"),
                        {
                            "PAGE": page, "GRAIN": tiles.k, "BLOCK_M": tiles.m, "BLOCK_N": tiles.n,
                            "BLOCK_K": tiles.k, "UPCAST": False,
                        },
                        tiles.warps,
                        tiles.stages,
                        divisible=frozenset({"x_stride", "K"} if divisible else ()),
                        expects=frozenset({"mma", "cp.async"} if divisible else {"mma"}),
                        cards=stored.cards,
                    )
                )  # fmt: skip
        for rows in row_shrinks():
            forms.append(
                Specialization(
                    f"shrink_rows {dtype} {rows}{stored.label}",
                    shrink_rows,
                    _arguments(dtype, stored.pointer, "row_adapters"),
                    {"PAGE": 1 << 15, "GRAIN": rows.k, "BLOCK_N": rows.n, "BLOCK_K": rows.k,
                     "STAGES": rows.stages},
                    rows.warps,
                    rows.stages,
                    divisible=frozenset({"x_stride", "K"}),
                    cards=stored.cards,
                )
            )  # fmt: skip
    return also_dependent(forms)


def _arguments(dtype: str, weights: str, rows: str) -> dict[str, str]:
    pointers = {"x": f"*{dtype}", "pool": weights, "planes": "*fp32"}
    tables = dict.fromkeys((rows, "adapters", "pages", "layouts"), "*i32")
    return pointers | tables | dict.fromkeys(("x_stride", "plane_stride", "planes_width", "layout_stride", "K"), "i32")
