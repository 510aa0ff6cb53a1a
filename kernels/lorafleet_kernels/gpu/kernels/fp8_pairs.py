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

LEAST, MOST = tl.constexpr(127 - 60), tl.constexpr(127 + 60)
"""Exponents of scales as float32 has them, of heads of all zeros and beyond what any model computes."""


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
def exponents(low_half, high_half):
    """Of the scales of heads `[heads, D/2]` float32, as float32 has them; 255, which is NaN's, for a head that is not
    finite, so that all that reads it is NaN."""
    bits_low = low_half.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    bits_high = high_half.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    largest = tl.maximum(tl.max(bits_low, 1), tl.max(bits_high, 1))
    # The least power of two that makes 448 of the largest: 448 is 1.75 · 2^8, so more of a fraction is one more.
    found = ((largest + 0x1FFFFF) >> 23) - 8
    found = tl.minimum(tl.maximum(found, LEAST), MOST)
    return tl.where(largest < 0x7F800000, found, 255)


@triton.jit
def bfloat16_bits(exponent):
    """What `exponents` says as the bits of a bfloat16 in an int16."""
    return tl.where(exponent == 255, 0x7FFF, exponent << 7).to(tl.int16)


@triton.jit
def packed(low_half, high_half, exponent):
    """The int16 words of heads `[heads, D/2]` float32 with scales of `exponent [heads]`."""
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)[:, None]
    return (_e4m3(low_half * inverse) | (_e4m3(high_half * inverse) << 8)).to(tl.int16)


@triton.jit
def _e4m3(x):
    """The bits of float32 as e4m3 in an int32, rounded to nearest, ties to even; what is beyond 448 is 448."""
    bits = x.to(tl.int32, bitcast=True)
    size = tl.minimum(bits & 0x7FFFFFFF, 0x43E00000)
    usual = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 all steps are 2^-9, as those of float32 are from 2^14 on.
    small = (tl.abs(x) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    return tl.where(size < 0x3C800000, small, usual) | ((bits >> 24) & 0x80)
