"""One row's delta for a block of columns, from the planes that shrink left: the half of expand that other kernels take
in, each of which reads the base layer's output anyway."""

from __future__ import annotations

import triton
import triton.language as tl

from lorafleet_kernels.gpu.kernels.dependence import LINE, ROWS_AHEAD, fetch_rows
from lorafleet_kernels.gpu.kernels.lora_pages import adapter_entry, in_pool, slice_entry, sum_planes, weight_values


@triton.jit
def slice_delta(
    planes, pool, adapters, pages, layouts, plane_stride, planes_width, layout_stride, splits,
    row, adapter, first_column, width, number,
    PAGE: tl.constexpr, GRAIN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """float32 `[BLOCK_N]`: what the adapter (one of the step's; -1: the base model, all zeros) adds to the columns
    `first_column ..` of projection `number`, which is `width` wide, of this row. `layouts` points at the group's
    description in layout 0; `splits` planes `[T, planes_width]` lie `plane_stride` apart.

    ALIGNED promises that no block of columns crosses a multiple of GRAIN: a rank then costs one look for its page."""
    delta = tl.zeros((BLOCK_N,), tl.float32)
    if adapter >= 0:
        table, entry = adapter_entry(adapters, pages, layouts, layout_stride, adapter)
        begin, rank, first_rank = slice_entry(entry, number)
        stride = tl.cdiv(width, GRAIN) * GRAIN
        column = tl.arange(0, BLOCK_N)
        wanted = first_column + column < width
        h_row = planes + row * planes_width + first_rank
        for done in range(0, rank, BLOCK_R):
            r = done + tl.arange(0, BLOCK_R)
            h = sum_planes(h_row + r, r < rank, plane_stride, splits)
            if ALIGNED:
                places = in_pool(table, begin + r * stride + first_column // GRAIN * GRAIN, r < rank, PAGE)
                places = places[:, None] + (first_column % GRAIN + column)[None, :]
            else:
                elements = (begin + r[:, None] * stride + (first_column + column)[None, :]).to(tl.uint32)
                page = tl.load(table + elements // PAGE, mask=(r[:, None] < rank) & wanted[None, :], other=0)
                places = page.to(tl.int64) * PAGE + (elements % PAGE).to(tl.int64)
            b = tl.load(pool + places, mask=(r[:, None] < rank) & wanted[None, :], other=0.0)
            delta += tl.sum(h[:, None] * weight_values(b, tl.float32), axis=0)
    return delta


@triton.jit
def fetch_slice(
    pool, adapters, pages, layouts, layout_stride, adapter, first_column, width, number,
    PAGE: tl.constexpr, GRAIN: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Into L2, what `slice_delta` is going to read of the adapter's Bᵀ, of its first ranks."""
    if adapter >= 0:
        table, entry = adapter_entry(adapters, pages, layouts, layout_stride, adapter)
        begin, rank, _ = slice_entry(entry, number)
        end = tl.minimum(first_column + BLOCK_N, width)
        LINES: tl.constexpr = (BLOCK_N * pool.dtype.element_ty.primitive_bitwidth + LINE - 1) // LINE
        fetch_rows(pool, table, begin, tl.cdiv(width, GRAIN) * GRAIN, rank, first_column, end, PAGE, ROWS_AHEAD, LINES)
