"""RMSNorm, alone, behind an addition, and behind an expand and an addition; rows of any width."""

from __future__ import annotations

from itertools import product

import triton
import triton.language as tl

from lorafleet_kernels.gpu.forms.lora import TYPES, row_expands
from lorafleet_kernels.gpu.forms.weight_types import Stored, stored_beside
from lorafleet_kernels.gpu.kernels.dependence import fetch_vector, let_next_start, wait_for_those_before
from lorafleet_kernels.gpu.kernels.lora_delta import fetch_slice, slice_delta
from lorafleet_kernels.gpu.specialization import Specialization, also_dependent

BLOCKS = (1024, 4096)
"""Columns at a time."""
WARPS = 4
COUNTS = ["plane_stride", "planes_width", "layout_stride", "splits"]


@triton.jit
def norm_row(out, x, weight, width, eps, BLOCK: tl.constexpr):
    """`out = x / rms(x) · weight` of one row, rounded where the reference rounds. Reads past the L1 cache: other
    programs may have written the row."""
    squares = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, width, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        v = tl.load(x + columns, mask=columns < width, other=0.0, cache_modifier=".cg").to(tl.float32)
        squares += v * v
    scale = tl.rsqrt(tl.sum(squares) / width + eps)
    for begin in range(0, width, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        v = tl.load(x + columns, mask=columns < width, other=0.0, cache_modifier=".cg").to(tl.float32)
        normal = (v * scale).to(out.dtype.element_ty).to(tl.float32)
        w = tl.load(weight + columns, mask=columns < width, other=0.0).to(tl.float32)
        tl.store(out + columns, (normal * w).to(out.dtype.element_ty), mask=columns < width)


@triton.jit
def rms_norm(
    out, x, weight, out_stride, x_stride, width, eps, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr
):  # fmt: skip
    """Grid (rows)."""
    let_next_start(DEPENDENT)
    if DEPENDENT:
        fetch_vector(weight, 0, width, BLOCK)
    wait_for_those_before(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    norm_row(out + row * out_stride, x + row * x_stride, weight, width, eps, BLOCK)


@triton.jit
def add_rms_norm(
    out, x, y, weight, out_stride, x_stride, y_stride, width, eps, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr
):  # fmt: skip
    """`x += y`, and its norm. Grid (rows)."""
    let_next_start(DEPENDENT)
    if DEPENDENT:
        fetch_vector(weight, 0, width, BLOCK)
    wait_for_those_before(DEPENDENT)
    row = tl.program_id(0).to(tl.int64)
    for begin in range(0, width, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        v = tl.load(x + row * x_stride + columns, mask=columns < width, other=0.0).to(tl.float32)
        v += tl.load(y + row * y_stride + columns, mask=columns < width, other=0.0).to(tl.float32)
        tl.store(x + row * x_stride + columns, v.to(x.dtype.element_ty), mask=columns < width)
    tl.debug_barrier()
    norm_row(out + row * out_stride, x + row * x_stride, weight, width, eps, BLOCK)


@triton.jit(do_not_specialize=COUNTS)
def expand_add_rms_norm(
    out, x, y, weight, arrived, pool, planes, row_adapters, adapters, pages, layouts,
    out_stride, x_stride, y_stride, width, eps, plane_stride, planes_width, layout_stride, splits,
    PAGE: tl.constexpr, GRAIN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """`x += y + delta`, and its norm. Grid (rows, blocks of columns): the program of a row that comes last to the
    counter `arrived [T]`, which is zero before and after, norms the whole row, as `add_rms_norm` does. So which it is
    changes nothing, and rows of the base model have the bits that they have without adapters."""
    let_next_start(DEPENDENT)
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_N
    adapter = tl.load(row_adapters + row)
    if DEPENDENT:
        fetch_slice(pool, adapters, pages, layouts, layout_stride, adapter, column, width, 0, PAGE, GRAIN, BLOCK_N)
        fetch_vector(weight, column, width, BLOCK_N)
    wait_for_those_before(DEPENDENT)
    delta = slice_delta(
        planes, pool, adapters, pages, layouts, plane_stride, planes_width, layout_stride, splits,
        row, adapter, column, width, 0, PAGE, GRAIN, BLOCK_N, BLOCK_R, True,
    )  # fmt: skip
    x_row = x + row.to(tl.int64) * x_stride
    columns = column + tl.arange(0, BLOCK_N)
    v = tl.load(y + row.to(tl.int64) * y_stride + columns, mask=columns < width, other=0.0).to(tl.float32)
    v = (v + delta).to(y.dtype.element_ty).to(tl.float32)
    v += tl.load(x_row + columns, mask=columns < width, other=0.0).to(tl.float32)
    tl.store(x_row + columns, v.to(x.dtype.element_ty), mask=columns < width)
    # All threads' stores come before the counter's release, and all loads below after its acquire.
    tl.debug_barrier()
    if tl.atomic_add(arrived + row, 1, sem="acq_rel") == tl.num_programs(1) - 1:
        tl.store(arrived + row, 0)
        norm_row(out + row.to(tl.int64) * out_stride, x_row, weight, width, eps, BLOCK)


def specializations() -> list[Specialization]:
    """Every element type and block of a row, without adapters and with an expand of every form by rows."""
    forms = []
    for dtype in TYPES:
        for block in BLOCKS:
            for kernel, tensors in ((rms_norm, ("out", "x", "weight")), (add_rms_norm, ("out", "x", "y", "weight"))):
                strides = [f"{name}_stride" for name in tensors if name != "weight"] + ["width"]
                arguments = dict.fromkeys(tensors, f"*{dtype}") | dict.fromkeys(strides, "i32") | {"eps": "fp32"}
                forms.append(
                    Specialization(
                        f"{kernel.__name__} {dtype} {block}", kernel, arguments, {"BLOCK": block}, WARPS, 2,
                        divisible=frozenset(strides),
                    )
                )  # fmt: skip
            # What a norm adds to a form is the same whatever the weights are: the longer block shows it.
            kinds = stored_beside(dtype) if block == BLOCKS[-1] else stored_beside(dtype)[:1]
            for rows, stored in product(row_expands(), kinds):
                forms.append(_fused(dtype, stored, rows.n, rows.k, block))
    return also_dependent(forms)


def _fused(dtype: str, stored: Stored, block_n: int, block_r: int, block: int) -> Specialization:
    strides = ("out_stride", "x_stride", "y_stride", "width")
    arguments = (
        dict.fromkeys(("out", "x", "y", "weight"), f"*{dtype}")
        | {"pool": stored.pointer, "planes": "*fp32", "eps": "fp32"}
        | dict.fromkeys(("arrived", "row_adapters", "adapters", "pages", "layouts"), "*i32")
        | dict.fromkeys((*strides, *COUNTS), "i32")
    )
    constants = {"PAGE": 1 << 15, "GRAIN": block_n, "BLOCK_N": block_n, "BLOCK_R": block_r, "BLOCK": block}
    return Specialization(
        f"expand_add_rms_norm {dtype} {block_n}x{block_r} {block}{stored.label}", expand_add_rms_norm, arguments,
        constants, WARPS, 2, divisible=frozenset(strides), cards=stored.cards,
    )  # fmt: skip
