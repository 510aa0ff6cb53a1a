"""`y[t, projection] += Σ_j planes[j, t, ranks of the projection] · Bᵀ`, computed in float32 and rounded once.

All projections of a group in one launch: blocks of columns are counted over them, whatever their widths. The planes are
summed in their order, so the bits are the same every time."""

from __future__ import annotations

import triton
import triton.language as tl

from lorafleet_kernels.gpu.forms.lora import TYPES, over_fp8, row_expands, tile_expands
from lorafleet_kernels.gpu.forms.weight_types import stored_beside
from lorafleet_kernels.gpu.kernels.dependence import let_next_start, wait_for_those_before
from lorafleet_kernels.gpu.kernels.lora_delta import fetch_slice, slice_delta
from lorafleet_kernels.gpu.kernels.lora_pages import (
    adapter_entry,
    bridge_dot,
    in_pool,
    slice_entry,
    sum_planes,
    weight_values,
)
from lorafleet_kernels.gpu.specialization import Specialization, also_dependent

COUNTS = ["plane_stride", "planes_width", "layout_stride", "splits"]


@triton.jit
def column_block(block, width_0, width_1, width_2, BLOCK_N: tl.constexpr):
    """Which projection a block is of, its first column there, and the projection's width and first column in y."""
    blocks_0, blocks_1 = tl.cdiv(width_0, BLOCK_N), tl.cdiv(width_1, BLOCK_N)
    number, column, width, offset = 0, block * BLOCK_N, width_0, 0
    if block >= blocks_0 + blocks_1:
        number, column, width, offset = 2, (block - blocks_0 - blocks_1) * BLOCK_N, width_2, width_0 + width_1
    elif block >= blocks_0:
        number, column, width, offset = 1, (block - blocks_0) * BLOCK_N, width_1, width_0
    return number, column, width, offset


@triton.jit(do_not_specialize=COUNTS)
def expand_tiles(
    y, pool, planes, work, adapters, pages, layouts,
    y_stride, width_0, width_1, width_2, plane_stride, planes_width, layout_stride, splits,
    PAGE: tl.constexpr, GRAIN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, UPCAST: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Grid (work items, blocks of columns). `y [T, Σ widths]`, a width of 0 where there is no such projection;
    BLOCK_N ≤ GRAIN."""
    let_next_start(DEPENDENT)
    item = tl.program_id(0)
    count = tl.load(work + 3 * item + 1)
    if count == 0:
        wait_for_those_before(DEPENDENT)
        return
    first, adapter = tl.load(work + 3 * item), tl.load(work + 3 * item + 2)
    number, column, width, offset = column_block(tl.program_id(1), width_0, width_1, width_2, BLOCK_N)
    table, entry = adapter_entry(adapters, pages, layouts, layout_stride, adapter)
    begin, rank, first_rank = slice_entry(entry, number)
    if rank == 0:
        wait_for_those_before(DEPENDENT)
        return
    if DEPENDENT:
        fetch_slice(pool, adapters, pages, layouts, layout_stride, adapter, column, width, number, PAGE, GRAIN, BLOCK_N)
    wait_for_those_before(DEPENDENT)
    stride = tl.cdiv(width, GRAIN) * GRAIN

    rows, columns = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    own, wanted = rows < count, column + columns < width
    h_rows = planes + (first + rows)[:, None] * planes_width + first_rank
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for done in range(0, rank, BLOCK_R):
        r = done + tl.arange(0, BLOCK_R)
        places = in_pool(table, begin + r * stride + column, r < rank, PAGE)
        b = tl.load(
            pool + places[:, None] + columns[None, :], mask=(r[:, None] < rank) & wanted[None, :], other=0.0
        )  # fmt: skip
        h = sum_planes(h_rows + r[None, :], own[:, None] & (r[None, :] < rank), plane_stride, splits)
        acc = bridge_dot(h, weight_values(b, y.dtype.element_ty), acc, UPCAST)
    out = y + (first + rows).to(tl.int64)[:, None] * y_stride + (offset + column + columns)[None, :]
    mask = own[:, None] & wanted[None, :]
    base = tl.load(out, mask=mask, other=0.0).to(tl.float32)
    tl.store(out, (base + acc).to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=COUNTS)
def expand_rows(
    y, pool, planes, row_adapters, adapters, pages, layouts,
    y_stride, width_0, width_1, width_2, plane_stride, planes_width, layout_stride, splits,
    PAGE: tl.constexpr, GRAIN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The same with grid (rows, blocks of columns), without tensor cores; rows of the base model are left alone."""
    let_next_start(DEPENDENT)
    row = tl.program_id(0)
    adapter = tl.load(row_adapters + row)
    if adapter < 0:
        wait_for_those_before(DEPENDENT)
        return
    number, column, width, offset = column_block(tl.program_id(1), width_0, width_1, width_2, BLOCK_N)
    if DEPENDENT:
        fetch_slice(pool, adapters, pages, layouts, layout_stride, adapter, column, width, number, PAGE, GRAIN, BLOCK_N)
    wait_for_those_before(DEPENDENT)
    delta = slice_delta(
        planes, pool, adapters, pages, layouts, plane_stride, planes_width, layout_stride, splits,
        row, adapter, column, width, number, PAGE, GRAIN, BLOCK_N, BLOCK_R, True,
    )  # fmt: skip
    columns = tl.arange(0, BLOCK_N)
    out = y + row.to(tl.int64) * y_stride + offset + column + columns
    base = tl.load(out, mask=column + columns < width, other=0.0).to(tl.float32)
    tl.store(out, (base + delta).to(y.dtype.element_ty), mask=column + columns < width)


def specializations() -> list[Specialization]:
    """Every form that `forms.lora` can choose; one of them also for pages of no power of two, and for odd widths."""
    widths = {"y_stride", "width_0", "width_1", "width_2"}
    forms = []
    for dtype, stored in ((t, stored) for t in TYPES for stored in stored_beside(t)):
        for tiles in tile_expands():
            for page, divisible in ((1 << 15, True), (5 << 13, True), (1 << 12, False)):
                if page == 1 << 15 or (tiles == tile_expands()[0] and not stored.label):
                    constants = {"BLOCK_M": tiles.m, "BLOCK_N": tiles.n, "BLOCK_R": tiles.k, "UPCAST": False}
                    forms.append(
                        Specialization(
                            f"expand_tiles {dtype} {tiles} page={page}{'' if divisible else ' odd'}{stored.label}",
                            expand_tiles,
                            _arguments(dtype, stored.pointer, "work"),
                            constants | {"PAGE": page, "GRAIN": tiles.n},
                            tiles.warps,
                            tiles.stages,
                            divisible=frozenset(widths if divisible else ()),
                            expects=frozenset({"mma"}),
                            cards=stored.cards,
                        )
                    )
        for rows in (over_fp8(rows) if stored.label else rows for rows in row_expands()):
            forms.append(
                Specialization(
                    f"expand_rows {dtype} {rows}{stored.label}",
                    expand_rows,
                    _arguments(dtype, stored.pointer, "row_adapters"),
                    {"PAGE": 1 << 15, "GRAIN": rows.n, "BLOCK_N": rows.n, "BLOCK_R": rows.k},
                    rows.warps,
                    rows.stages,
                    divisible=frozenset(widths),
                    cards=stored.cards,
                )
            )
    return also_dependent(forms)


def _arguments(dtype: str, weights: str, rows: str) -> dict[str, str]:
    pointers = {"y": f"*{dtype}", "pool": weights, "planes": "*fp32"}
    tables = dict.fromkeys((rows, "adapters", "pages", "layouts"), "*i32")
    return pointers | tables | dict.fromkeys(("y_stride", "width_0", "width_1", "width_2", *COUNTS), "i32")
