"""`silu(gate) · up`, alone and behind an expand; rows of any width."""

from __future__ import annotations

from itertools import product

import triton
import triton.language as tl

from lorafleet_kernels.gpu.forms.lora import TYPES, row_expands
from lorafleet_kernels.gpu.forms.weight_types import stored_beside
from lorafleet_kernels.gpu.kernels.dependence import let_next_start, wait_for_those_before
from lorafleet_kernels.gpu.kernels.lora_delta import fetch_slice, slice_delta
from lorafleet_kernels.gpu.specialization import Specialization, also_dependent

BLOCK, WARPS = 1024, 4
COUNTS = ["plane_stride", "planes_width", "layout_stride", "splits"]


@triton.jit
def silu_product(gate, up, dtype):
    """Of float32 values that have been rounded to `dtype`, rounded where the reference rounds."""
    e = tl.exp(-tl.abs(gate))  # never overflows
    return (gate * tl.where(gate < 0, e, 1.0) / (1.0 + e)).to(dtype).to(tl.float32) * up


@triton.jit
def silu_and_mul(out, x, out_stride, x_stride, width, BLOCK_N: tl.constexpr, DEPENDENT: tl.constexpr):
    """`x [T, 2 · width]` → `out [T, width]`. Grid (rows, blocks of columns)."""
    let_next_start(DEPENDENT)
    wait_for_those_before(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    gate = tl.load(x + row * x_stride + columns, mask=columns < width, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_stride + width + columns, mask=columns < width, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    tl.store(out + row * out_stride + columns, silu_product(gate, up, dtype).to(dtype), mask=columns < width)


@triton.jit(do_not_specialize=COUNTS)
def expand_silu_and_mul(
    out, x, pool, planes, row_adapters, adapters, pages, layouts,
    out_stride, x_stride, width, plane_stride, planes_width, layout_stride, splits,
    PAGE: tl.constexpr, GRAIN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """`silu(gate + its delta) · (up + its delta)`; x stays as it is. Grid (rows, blocks of columns)."""
    let_next_start(DEPENDENT)
    row = tl.program_id(0)
    adapter = tl.load(row_adapters + row)
    column = tl.program_id(1) * BLOCK_N
    if DEPENDENT:
        for number in tl.static_range(2):
            fetch_slice(
                pool, adapters, pages, layouts, layout_stride, adapter, column, width, number, PAGE, GRAIN, BLOCK_N
            )
    wait_for_those_before(DEPENDENT)
    columns = column + tl.arange(0, BLOCK_N)
    x_row = x + row.to(tl.int64) * x_stride
    dtype = out.dtype.element_ty
    gate = tl.load(x_row + columns, mask=columns < width, other=0.0).to(tl.float32)
    gate += slice_delta(
        planes, pool, adapters, pages, layouts, plane_stride, planes_width, layout_stride, splits,
        row, adapter, column, width, 0, PAGE, GRAIN, BLOCK_N, BLOCK_R, True,
    )  # fmt: skip
    up = tl.load(x_row + width + columns, mask=columns < width, other=0.0).to(tl.float32)
    up += slice_delta(
        planes, pool, adapters, pages, layouts, plane_stride, planes_width, layout_stride, splits,
        row, adapter, column, width, 1, PAGE, GRAIN, BLOCK_N, BLOCK_R, True,
    )  # fmt: skip
    gate, up = gate.to(dtype).to(tl.float32), up.to(dtype).to(tl.float32)
    out_row = out + row.to(tl.int64) * out_stride
    tl.store(out_row + columns, silu_product(gate, up, dtype).to(dtype), mask=columns < width)


def specializations() -> list[Specialization]:
    """Every element type, without adapters and with an expand of every form by rows."""
    forms = []
    strides = {"out_stride": "i32", "x_stride": "i32", "width": "i32"}
    for dtype in TYPES:
        tensors = {"out": f"*{dtype}", "x": f"*{dtype}"}
        forms.append(
            Specialization(
                f"silu_and_mul {dtype} {BLOCK}", silu_and_mul, tensors | strides, {"BLOCK_N": BLOCK}, WARPS, 2,
                divisible=frozenset(strides),
            )
        )  # fmt: skip
        tables = dict.fromkeys(("row_adapters", "adapters", "pages", "layouts"), "*i32")
        lora = tables | {"planes": "*fp32"} | dict.fromkeys(COUNTS, "i32")
        for rows, stored in product(row_expands(), stored_beside(dtype)):
            forms.append(
                Specialization(
                    f"expand_silu_and_mul {dtype} {rows}{stored.label}",
                    expand_silu_and_mul,
                    tensors | strides | lora | {"pool": stored.pointer},
                    {"PAGE": 1 << 15, "GRAIN": rows.n, "BLOCK_N": rows.n, "BLOCK_R": rows.k},
                    rows.warps,
                    rows.stages,
                    divisible=frozenset(strides),
                    cards=stored.cards,
                )
            )
    return also_dependent(forms)
