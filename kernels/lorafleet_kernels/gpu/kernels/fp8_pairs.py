"""Keys and values of 8 bits in the pool: device functions for all kernels that write or read them.

Twin: `reference_fp8`, which says what lies where. Features j and j + D/2 of a head, which rotation turns together, are
the low and the high byte of one word of 16 bits. So tiles of them come through shared memory in the tensor cores'
order, which bytes could not, and become bfloat16 by shifts alone, on cards with and without a type of 8 bits: an
exponent of 4 bits where one of 8 is expected is short of 2^120, and queries, weights and results are lifted for it,
each by less than it would feel."""

from __future__ import annotations

import triton
import triton.language as tl

LIFT = tl.constexpr(2.0**60)
"""Of queries and of weights, so that their products with keys and values · 2^-120 stay far from the smallest float32;
results are lifted once more."""

LOW = tl.constexpr("""{ .reg .b32 a, b;
    shl.b32 a, $1, 4;
    shl.b32 b, $1, 8;
    and.b32 a, a, 0x07f007f0;
    and.b32 b, b, 0x80008000;
    or.b32 $0, a, b; }""")
HIGH = tl.constexpr("""{ .reg .b32 a, b;
    shr.u32 a, $1, 4;
    and.b32 b, $1, 0x80008000;
    and.b32 a, a, 0x07f007f0;
    or.b32 $0, a, b; }""")
"""Two words at once: the compiler would take them apart for each shift, at twice the instructions."""


@triton.jit
def low(words, WIDE: tl.constexpr):
    """Features j of int16 words, as bfloat16 · 2^-120; as float32 · 2^-120 where WIDE."""
    if WIDE:
        bits = ((words & 0x80) << 8) | ((words & 0x7F) << 4)
        features = (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        features = tl.inline_asm_elementwise(LOW, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2)
    return features


@triton.jit
def high(words, WIDE: tl.constexpr):
    """Features j + D/2 of int16 words, as bfloat16 · 2^-120; as float32 · 2^-120 where WIDE."""
    if WIDE:
        bits = (words & -32768) | ((words >> 4) & 0x7F0)
        features = (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        features = tl.inline_asm_elementwise(HIGH, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2)
    return features


@triton.jit
def lifted(queries, WIDE: tl.constexpr):
    """Queries for a product with what `low` and `high` give."""
    ready = queries.to(tl.float32) * LIFT
    if not WIDE:
        ready = ready.to(tl.bfloat16)
    return ready


@triton.jit
def scales_of(both):
    """Of keys and of values, from the int32 that holds the two: float32, `both`'s shape."""
    return (both << 16).to(tl.float32, bitcast=True), (both & -65536).to(tl.float32, bitcast=True)


@triton.jit
def scored(low_queries, high_queries, keys, key_scales, scale, WIDE: tl.constexpr):
    """Scores `[queries, N]` of keys `[N, D/2]` words, by the two halves of their features."""
    scores = tl.dot(low_queries, tl.trans(low(keys, WIDE)), input_precision="ieee")
    scores = tl.dot(high_queries, tl.trans(high(keys, WIDE)), scores, input_precision="ieee")
    return scores * (key_scales * (LIFT * scale))[None, :]


@triton.jit
def attended(scores, values, value_scales, best, total, low_mixed, high_mixed, WIDE: tl.constexpr):
    """The running softmax over one tile more: the best score, the sum of weights, and the mixed values' halves, which
    are short of LIFT."""
    new_best = tl.maximum(best, tl.max(scores, 1))
    weights = tl.exp2(scores - new_best[:, None])
    fade = tl.exp2(best - new_best)
    total = total * fade + tl.sum(weights, 1)
    weights = weights * (value_scales * LIFT)[None, :]
    if not WIDE:
        weights = weights.to(tl.bfloat16)
    low_mixed = tl.dot(weights, low(values, WIDE), low_mixed * fade[:, None], input_precision="ieee")
    high_mixed = tl.dot(weights, high(values, WIDE), high_mixed * fade[:, None], input_precision="ieee")
    return new_best, total, low_mixed, high_mixed


@triton.jit
def quantised(low_half, high_half):
    """Heads `[heads, D/2]` float32 → their int16 words, and their scales `[heads]` as the bits of bfloat16; of a head
    that is not finite those of NaN, so that all that reads it is NaN."""
    bits = tl.maximum(
        tl.max(low_half.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1),
        tl.max(high_half.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1),
    )
    largest = bits.to(tl.float32, bitcast=True)
    least = tl.full(bits.shape, float("inf"), tl.float32)
    scales = tl.full(bits.shape, 1.0, tl.float32)
    for step in tl.static_range(4):
        top = 448.0 - 64.0 * step
        scale = _bfloat16(tl.minimum(tl.maximum(largest * (1 / top), 1 / LIFT), LIFT))
        inverse = tl.div_rn(tl.full(bits.shape, 1.0, tl.float32), scale)[:, None]
        error = tl.sum(_error(low_half * inverse), 1) + tl.sum(_error(high_half * inverse), 1)
        error = error * (1 / (top * top))
        scales = tl.where(error < least, scale, scales)
        least = tl.minimum(error, least)
    inverse = tl.div_rn(tl.full(bits.shape, 1.0, tl.float32), scales)[:, None]
    words = (_e4m3(low_half * inverse) | (_e4m3(high_half * inverse) << 8)).to(tl.int16)
    found = tl.where(bits < 0x7F800000, scales.to(tl.int32, bitcast=True) >> 16, 0x7FFF)
    return words, found.to(tl.int16)


@triton.jit
def _bfloat16(x):
    """The nearest bfloat16 of positive float32, which stays one: the interpreter would cut off."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _nearest(x):
    """The nearest e4m3 of |x|, as float32, ties to even; what is beyond 448 is 448."""
    size = tl.minimum(tl.abs(x), 448.0)
    bits = size.to(tl.int32, bitcast=True)
    usual = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -1048576).to(tl.float32, bitcast=True)
    # Below 2^-6 all steps are 2^-9, as those of float32 are from 2^14 on.
    return tl.where(size < 0.015625, (size + 16384.0) - 16384.0, usual)


@triton.jit
def _error(x):
    off = _nearest(x) - tl.abs(x)
    return off * off


@triton.jit
def _e4m3(x):
    """The bits of the nearest e4m3 in an int32."""
    near = _nearest(x)
    usual = (near.to(tl.int32, bitcast=True) >> 20) - (120 << 3)
    small = (near * 512.0).to(tl.int32)
    return tl.where(near < 0.015625, small, usual) | ((x.to(tl.int32, bitcast=True) >> 24) & 0x80)
