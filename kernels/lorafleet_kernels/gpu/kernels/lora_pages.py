"""What the LoRA kernels share: where an adapter's weights are, and products that lose nothing of a float32 bridge."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def adapter_entry(adapters, pages, layouts, layout_stride, adapter):
    """Of one of the step's adapters: its list of pages, and its description of the group (`layouts` points at that of
    layout 0)."""
    layout = tl.load(adapters + 2 * adapter)
    return pages + tl.load(adapters + 2 * adapter + 1), layouts + layout * layout_stride


@triton.jit
def slice_entry(entry, number):
    """Of projection `number` of a description: where its Bᵀ begins, its rank, and the first of its columns in planes.
    """
    before = tl.where(number > 0, tl.load(entry + 3), 0) + tl.where(number > 1, tl.load(entry + 5), 0)
    return tl.multiple_of(tl.load(entry + 2 + 2 * number), 16), tl.load(entry + 3 + 2 * number), before


@triton.jit
def in_pool(table, elements, mask, PAGE: tl.constexpr):
    """Where in a layer's pool the elements of a vector lie, in int64: a pool has more than 2³¹ elements. Each of
    `elements`, int32, begins a run of a grain, so it is a multiple of 16."""
    elements = elements.to(tl.uint32)
    page = tl.load(table + elements // PAGE, mask=mask, other=0)
    return page.to(tl.int64) * PAGE + tl.multiple_of((elements % PAGE).to(tl.int32), 16)


@triton.jit
def weight_values(stored, dtype):
    """What lies in the pool, as `dtype`. Of e4m3 that is the number, where the card has an instruction for it, or, from
    its bits, 2⁻⁸ of it: e4m3 (bias 7, 3 bits behind the point) is float16 (15 and 10) of 8 less, subnormals included.
    `rank_scales` makes up for that."""
    if stored.dtype == tl.uint8:
        # The sign is in bits 7 to 15 of the wider number: of what is shifted it belongs in bit 15 and not in 14.
        bits = (stored.to(tl.int8, bitcast=True).to(tl.int16) << 7) & -0x4001
        stored = bits.to(tl.float16, bitcast=True)
    elif stored.dtype == tl.float8e4nv:
        stored = stored.to(tl.float16)
    return stored.to(dtype)


@triton.jit
def rank_scales(pool, table, begin, ranks, n, PAGE: tl.constexpr):
    """float32, of each of the rows `n` of an A in e4m3 that begins at `begin`: what h is to be multiplied with. The
    scales of A's row and of Bᵀ's, as one, lie before A, up to its first byte."""
    elements = (begin - 4 * (ranks - n)).to(tl.uint32)
    page = tl.load(table + elements // PAGE, mask=n < ranks, other=0)
    places = page.to(tl.int64) * PAGE + (elements % PAGE).to(tl.int64)
    scales = tl.load((pool + places).to(tl.pointer_type(tl.float32)), mask=n < ranks, other=0.0)
    if pool.dtype.element_ty == tl.uint8:
        scales *= 65536.0  # 2⁸ for A, and 2⁸ for B
    return scales


@triton.jit
def sum_planes(first, mask, plane_stride, splits):
    """The sum of what `first`, pointers into plane 0, and the planes after it hold: in their order, yet read eight at a
    time, as a read takes longer than all that is done with it."""
    total = tl.zeros(first.shape, tl.float32)
    for done in range(0, splits, 8):
        for split in tl.static_range(8):
            # A comparison of two plain numbers would be a Python bool to the interpreter, which masks do not take.
            there = mask & (tl.full(mask.shape, done + split, tl.int32) < splits)
            total += tl.load(first + (done + split) * plane_stride, mask=there, other=0.0)
    return total


@triton.jit
def bridge_dot(h, b, acc, UPCAST: tl.constexpr):
    """`acc + h · b`, where `h` is float32: as two terms that the tensor cores take without loss beyond 2⁻¹⁶ of it.
    Rounded to the weights' type alone, h would lose as much as the result may, and in float16 overflow."""
    if UPCAST:
        acc = tl.dot(h, b.to(tl.float32), acc)
    elif b.dtype == tl.bfloat16:
        high = h.to(tl.bfloat16)
        low = (h - high.to(tl.float32)).to(tl.bfloat16)
        acc = tl.dot(high, b, acc)
        acc = tl.dot(low, b, acc)
    else:
        # TF32 reads the upper 19 bits of a float32 and holds every float16.
        high = ((h.to(tl.uint32, bitcast=True) >> 13) << 13).to(tl.float32, bitcast=True)
        weights = b.to(tl.float32)
        acc = tl.dot(high, weights, acc, input_precision="tf32")
        acc = tl.dot(h - high, weights, acc, input_precision="tf32")
    return acc
