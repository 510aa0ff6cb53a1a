"""A token of every row that is drawn, by inverting the cumulative distribution in the order of token ids.

A program sums the weights of one block of a row; the last to arrive finds the block in which the running sum passes
u · total, and the token in it. Sums are float32 within a block and float64 from there on: float32 over a vocabulary
would lose rare tokens."""

from __future__ import annotations

import triton
import triton.language as tl

from lorafleet_kernels.gpu.kernels.last_arriver import arrives_last
from lorafleet_kernels.gpu.kernels.logits_forms import logits_forms
from lorafleet_kernels.gpu.specialization import Specialization

BLOCK = 2048
WARPS = 8
MOST_BLOCKS = 256


@triton.jit
def _weights(row_logits, block, columns, top, inverse_temperature, min_p, cutoff, BLOCK: tl.constexpr):
    """Probabilities up to a factor: 1 for the best token, 0 for one that is filtered."""
    at = block * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(row_logits + at, mask=at < columns, other=float("-inf")).to(tl.float32)
    weights = tl.exp((values - top) * inverse_temperature)
    return tl.where((weights >= min_p) & (values >= cutoff), weights, 0.0)


@triton.jit(do_not_specialize=["columns"])
def draw_kernel(
    logits, tokens, tops, inverse_temperatures, min_ps, cutoffs, uniforms, sums, arrived, columns, row_stride,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Grid: rows × blocks of a row (at most BLOCKS). Rows whose inverse temperature is 0, or whose best
    logit `tops [rows]` is not finite, keep the token they have.
    `sums [rows, BLOCKS]` float64; `arrived [rows]` int32, zeros before and after."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    blocks = tl.num_programs(1)
    inverse_temperature = tl.load(inverse_temperatures + row)
    top = tl.load(tops + row)
    if (inverse_temperature == 0.0) | (tl.abs(top) == float("inf")):
        return
    min_p = tl.load(min_ps + row)
    cutoff = tl.load(cutoffs + row)
    ours = logits + row * row_stride
    weights = _weights(ours, block, columns, top, inverse_temperature, min_p, cutoff, BLOCK)
    tl.store(sums + row * BLOCKS + block, tl.sum(weights, 0).to(tl.float64))
    if arrives_last(arrived + row, blocks):
        lane = tl.arange(0, BLOCKS)
        parts = tl.load(sums + row * BLOCKS + lane, mask=lane < blocks, other=0.0, cache_modifier=".cg")
        target = tl.load(uniforms + row) * tl.sum(parts, 0)
        ends = tl.cumsum(parts, 0)
        # What rounding puts at the end, or before the start, means the last or the first weight that is not zero.
        passed = tl.sum((ends <= target).to(tl.int32), 0)
        found = tl.minimum(passed, tl.max(tl.where(parts > 0.0, lane, 0), 0))
        left = tl.maximum(target - tl.sum(tl.where(lane < found, parts, 0.0), 0), 0.0)
        weights = _weights(ours, found, columns, top, inverse_temperature, min_p, cutoff, BLOCK)
        ends = tl.cumsum(weights.to(tl.float64), 0)
        passed = tl.sum((ends <= left).to(tl.int32), 0)
        column = tl.minimum(passed, tl.max(tl.where(weights > 0.0, tl.arange(0, BLOCK), 0), 0))
        tl.store(tokens + row, (found * BLOCK + column).to(tokens.dtype.element_ty))


def specializations() -> list[Specialization]:
    """Of all logits."""
    arguments = {
        "tokens": "*i64", **dict.fromkeys(("tops", "inverse_temperatures", "min_ps", "cutoffs"), "*fp32"),
        "uniforms": "*fp64", "sums": "*fp64", "arrived": "*i32",
    }  # fmt: skip
    return logits_forms("draw", draw_kernel, arguments, {"BLOCK": BLOCK, "BLOCKS": MOST_BLOCKS}, WARPS)
