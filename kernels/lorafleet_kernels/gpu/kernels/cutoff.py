"""The lowest logit that top-k and top-p keep in a row: by bisection over the order of float32 numbers, with no sort.

Both are the least number t for which little enough lies above it: fewer than k logits; less than p of the probability.
Four parts of the interval are told apart in one pass over the row, so 16 passes end at one number, ties included."""

from __future__ import annotations

import triton
import triton.language as tl

from lorafleet_kernels.gpu.kernels.logits_forms import logits_forms
from lorafleet_kernels.gpu.specialization import Specialization

BLOCK = 8192
WARPS = 16


@triton.jit
def _key(values):
    """float32 as int32 in the same order."""
    bits = values.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(key):
    key = key.to(tl.int32)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _above(
    logits, columns, top, inverse_temperature, min_p, least, first, second, third,
    COUNT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How much lies above each of three keys, and in all: of logits their number where `COUNT`, else their weights,
    of those that have a key of `least` at least."""
    a = tl.full([], 0.0, tl.float64)
    b, c, every = a, a, a
    for begin in range(0, columns, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        values = tl.load(logits + at, mask=at < columns, other=float("-inf")).to(tl.float32)
        weights = tl.exp((values - top) * inverse_temperature)
        key = _key(values).to(tl.int64)
        kept = (at < columns) & (key >= least) & (weights >= min_p)
        weights = tl.where(kept, weights, 0.0)
        if COUNT:
            weights = tl.where(at < columns, 1.0, 0.0)
        a += tl.sum(tl.where(key > first, weights, 0.0), 0).to(tl.float64)
        b += tl.sum(tl.where(key > second, weights, 0.0), 0).to(tl.float64)
        c += tl.sum(tl.where(key > third, weights, 0.0), 0).to(tl.float64)
        every += tl.sum(weights, 0).to(tl.float64)
    return a, b, c, every


@triton.jit
def _least(
    logits, columns, top, inverse_temperature, min_p, least, share, COUNT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The least key above which there are fewer than `share` logits (`COUNT`), or less than `share` of the weight."""
    low = _key(tl.full([], float("-inf"), tl.float32)).to(tl.int64) - 1
    low = tl.maximum(low, least - 1)
    high = _key(top).to(tl.int64)
    while high - low > 1:
        quarter = (high - low + 3) // 4
        first = tl.minimum(low + quarter, high)
        second = tl.minimum(low + 2 * quarter, high)
        third = tl.minimum(low + 3 * quarter, high)
        a, b, c, every = _above(
            logits, columns, top, inverse_temperature, min_p, least, first, second, third, COUNT, BLOCK
        )
        limit = share
        if not COUNT:
            limit = share * every
        new_low = tl.where(c >= limit, third, tl.where(b >= limit, second, tl.where(a >= limit, first, low)))
        high = tl.where(a < limit, first, tl.where(b < limit, second, tl.where(c < limit, third, high)))
        low = new_low
    return high


@triton.jit(do_not_specialize=["columns"])
def cutoff_kernel(
    logits, tops, inverse_temperatures, min_ps, top_ks, top_ps, cutoffs, columns, row_stride, BLOCK: tl.constexpr
):  # fmt: skip
    """Grid: rows. `cutoffs [rows]` float32: -inf where nothing is filtered, and in rows that are not drawn (inverse
    temperature 0) or whose best logit `tops [rows]` is not finite. First `top_ks` int32 (0: all), then `top_ps` of what
    that and `min_ps` leave, as vLLM's order is."""
    row = tl.program_id(0).to(tl.int64)
    inverse_temperature = tl.load(inverse_temperatures + row)
    top = tl.load(tops + row)
    top_k = tl.load(top_ks + row)
    top_p = tl.load(top_ps + row)
    min_p = tl.load(min_ps + row)
    ours = logits + row * row_stride
    drawn = (inverse_temperature != 0.0) & (tl.abs(top) != float("inf"))
    least = _key(tl.full([], float("-inf"), tl.float32)).to(tl.int64)
    if drawn & (top_k > 0):
        least = _least(ours, columns, top, inverse_temperature, min_p, least, top_k.to(tl.float64), True, BLOCK)
    if drawn & (top_p < 1.0):
        least = _least(ours, columns, top, inverse_temperature, min_p, least, top_p.to(tl.float64), False, BLOCK)
    tl.store(cutoffs + row, _value(least))


def specializations() -> list[Specialization]:
    """Of all logits."""
    arguments = {
        **dict.fromkeys(("tops", "inverse_temperatures", "min_ps", "top_ps", "cutoffs"), "*fp32"), "top_ks": "*i32",
    }  # fmt: skip
    return logits_forms("cutoff", cutoff_kernel, arguments, {"BLOCK": BLOCK}, WARPS)
