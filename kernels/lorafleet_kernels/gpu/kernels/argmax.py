"""The best token of every row of logits, in one launch.

Twin: `reference.argmax`. A row is shared by several programs; the last to arrive compares what each has found, in the
order of token ids."""

from __future__ import annotations

import triton
import triton.language as tl

from lorafleet_kernels.gpu.kernels.last_arriver import arrives_last
from lorafleet_kernels.gpu.kernels.logits_forms import logits_forms
from lorafleet_kernels.gpu.specialization import Specialization

BLOCK = 4096
WARPS = 8
MOST_SPLITS = 32
NO_TOKEN = 2**31 - 1


@triton.jit(do_not_specialize=["columns", "blocks"])
def argmax_kernel(
    logits, tokens, tops, best_values, best_ids, arrived, columns, blocks, row_stride,
    BLOCK: tl.constexpr, SPLITS: tl.constexpr, NO_TOKEN: tl.constexpr,
):  # fmt: skip
    """Grid: rows × programs of a row (≤ SPLITS), each `blocks` blocks of columns. `tops [rows]` float32: its best.
    `best_values, best_ids [rows, SPLITS]` float32 and int32; `arrived [rows]` int32, zeros before and after."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    parts = tl.num_programs(1)
    begin = part * blocks * BLOCK
    lanes = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    ids = tl.full([BLOCK], NO_TOKEN, tl.int32)
    for block in range(blocks):
        at = begin + block * BLOCK + lanes
        values = tl.load(logits + row * row_stride + at, mask=at < columns, other=float("-inf")).to(tl.float32)
        # NaN counts as infinite: neither is a best token.
        values = tl.where(values != values, float("inf"), values)
        better = values > best
        best = tl.where(better, values, best)
        ids = tl.where(better, at, ids)
    top = tl.max(best, 0)
    token = tl.min(tl.where(best == top, ids, NO_TOKEN), 0)
    tl.store(best_values + row * SPLITS + part, top)
    tl.store(best_ids + row * SPLITS + part, token)
    if arrives_last(arrived + row, parts):
        lane = tl.arange(0, SPLITS)
        there = row * SPLITS + lane
        theirs = tl.load(best_values + there, mask=lane < parts, other=float("-inf"), cache_modifier=".cg")
        found = tl.load(best_ids + there, mask=lane < parts, other=NO_TOKEN, cache_modifier=".cg")
        top = tl.max(theirs, 0)
        token = tl.min(tl.where(theirs == top, found, NO_TOKEN), 0)
        tl.store(tops + row, top)
        finite = tl.abs(top) < float("inf")
        tl.store(tokens + row, tl.where(finite, token, -1).to(tokens.dtype.element_ty))


def specializations() -> list[Specialization]:
    """Of all logits."""
    arguments = {
        "tokens": "*i64", "tops": "*fp32", "best_values": "*fp32", "best_ids": "*i32", "arrived": "*i32",
        "blocks": "i32",
    }  # fmt: skip
    constants = {"BLOCK": BLOCK, "SPLITS": MOST_SPLITS, "NO_TOKEN": NO_TOKEN}
    return logits_forms("argmax", argmax_kernel, arguments, constants, WARPS)
