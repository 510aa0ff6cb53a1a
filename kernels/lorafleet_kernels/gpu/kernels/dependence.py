"""What a kernel says and asks where it starts before those ahead of it have ended: programmatic dependent launch, from
compute capability 9.0 on (PTX ISA, griddepcontrol; CUDA C++ Programming Guide, the section of that name).

Every program waits, also one that has nothing to do: a grid of programs that all left without waiting could end before
those ahead of it, and who waits for it would wait for nothing else. Before it waits, a program reads nothing but what
the step is told (`specialization.EARLY`), and writes nothing. Weights, keys and values are asked for, not read: a line
that is fetched into L2 shows nobody an old value, since all writes go there. `gpu.dependence` reads this from the
compiled code. Without DEPENDENT none of it is compiled; the interpreter, where one grid ends before the next begins,
does the same loads and leaves the instructions out."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lorafleet_kernels.gpu.specialization import INTERPRETED

COMPILED = tl.constexpr(not INTERPRETED)
LINE = tl.constexpr(1024)
"""Bits of a line of the cache."""
ROWS_AHEAD, LINES_AHEAD = tl.constexpr(32), tl.constexpr(8)
FETCH = tl.constexpr("""{ .reg .pred wanted;
    setp.ne.s32 wanted, $2, 0;
    @wanted prefetch.global.L2 [$1];
    mov.b32 $0, 0; }""")


@triton.jit
def let_next_start(DEPENDENT: tl.constexpr):
    """The kernel behind this one may start once all programs have come here, or have ended."""
    if DEPENDENT and COMPILED:
        gdc_launch_dependents()


@triton.jit
def wait_for_those_before(DEPENDENT: tl.constexpr):
    """From here on all that the kernels ahead of this one wrote is there, and they read no more."""
    if DEPENDENT and COMPILED:
        gdc_wait()


@triton.jit
def fetch(places, wanted):
    """Into L2, the lines of the pointers that are `wanted`, of the same shape."""
    if COMPILED:
        tl.inline_asm_elementwise(FETCH, "=r,l,r", [places, wanted.to(tl.int32)], tl.int32, is_pure=False, pack=1)


@triton.jit
def fetch_vector(vector, begin, end, MOST: tl.constexpr):
    """Elements `begin .. end` of what `vector` points at, up to MOST of them."""
    EACH: tl.constexpr = LINE // vector.dtype.element_ty.primitive_bitwidth
    at = begin + tl.arange(0, (MOST + EACH - 1) // EACH) * EACH
    fetch(vector + at, at < end)


@triton.jit
def fetch_rows(
    pool, table, begin, stride, rows, first, end, PAGE: tl.constexpr, ROWS: tl.constexpr, LINES: tl.constexpr
):  # fmt: skip
    """Columns `first .. end` of the rows of an adapter's matrix, which are `stride` apart: up to ROWS rows, and LINES
    lines of each. The page table is read."""
    EACH: tl.constexpr = LINE // pool.dtype.element_ty.primitive_bitwidth
    row = tl.arange(0, ROWS)[:, None]
    column = (first + tl.arange(0, LINES) * EACH)[None, :]
    wanted = (row < rows) & (column < end)
    elements = (begin + row * stride + column).to(tl.uint32)
    page = tl.load(table + elements // PAGE, mask=wanted, other=0)
    fetch(pool + page.to(tl.int64) * PAGE + (elements % PAGE).to(tl.int64), wanted)
