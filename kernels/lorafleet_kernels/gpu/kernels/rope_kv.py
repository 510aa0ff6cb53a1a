"""Rotation of queries and keys, and the keys' and values' way to their pages: one launch a layer.

Twin: `reference.rotated_heads` and `reference.kv_write`, or for FP8 that of `reference_fp8`; where adapters take part,
after `reference.lora_segment`. One program takes a few heads of one token, behind an expand one head: it reads every
element of qkv once and writes it once, queries where they came from."""

from __future__ import annotations

from itertools import product

import triton
import triton.language as tl

from lorafleet_kernels.gpu.forms.attention import PAGE_TOKENS, SHIPPED_SIZES
from lorafleet_kernels.gpu.forms.weight_types import Stored, stored_beside
from lorafleet_kernels.gpu.kernels.dependence import let_next_start, wait_for_those_before
from lorafleet_kernels.gpu.kernels.fp8_pairs import quantised
from lorafleet_kernels.gpu.kernels.lora_delta import fetch_slice, slice_delta
from lorafleet_kernels.gpu.specialization import Specialization, also_dependent

HEADS_AT_ONCE = 8
WARPS = 4
RANKS_AT_ONCE = 16


@triton.jit
def finish_heads(
    low, high, here, head, token, slot, q_norm, k_norm, cos, sin, positions, pool, scales,
    heads, kv_heads, page_stride, half_stride, token_stride, head_stride, eps,
    SIZE: tl.constexpr, BLOCK_HALF: tl.constexpr, PAGE: tl.constexpr, NORMS: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Norms, rotation and all writes of some heads of one token: `low, high [heads, BLOCK_HALF]` float32 are their
    halves, `here` points at the lower ones in qkv. FP8: `pool` and its strides are int16 words, `scales
    [P, kv_heads, PAGE, 2]` the bits of bfloat16."""
    DTYPE: tl.constexpr = q_norm.dtype.element_ty
    HALF: tl.constexpr = SIZE // 2
    d = tl.arange(0, BLOCK_HALF)
    inside = d < HALF
    is_query = head < heads
    rotates = head < heads + kv_heads
    exists = head < heads + 2 * kv_heads
    rotated_low, rotated_high = low, high
    if NORMS:
        mean = (tl.sum(low * low, 1) + tl.sum(high * high, 1)) / SIZE
        inverse = tl.rsqrt(mean + eps)[:, None]
        q_low = tl.load(q_norm + d, mask=inside, other=0.0).to(tl.float32)[None, :]
        q_high = tl.load(q_norm + HALF + d, mask=inside, other=0.0).to(tl.float32)[None, :]
        k_low = tl.load(k_norm + d, mask=inside, other=0.0).to(tl.float32)[None, :]
        k_high = tl.load(k_norm + HALF + d, mask=inside, other=0.0).to(tl.float32)[None, :]
        # Rounded where the reference rounds: after the norm, and after its weight.
        rotated_low = (low * inverse).to(DTYPE).to(tl.float32) * tl.where(is_query[:, None], q_low, k_low)
        rotated_high = (high * inverse).to(DTYPE).to(tl.float32) * tl.where(is_query[:, None], q_high, k_high)
        rotated_low = rotated_low.to(DTYPE).to(tl.float32)
        rotated_high = rotated_high.to(DTYPE).to(tl.float32)
    angle = tl.load(positions + token).to(tl.int64) * SIZE + d
    cos_low = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)[None, :]
    cos_high = tl.load(cos + angle + HALF, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_low = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)[None, :]
    sin_high = tl.load(sin + angle + HALF, mask=inside, other=0.0).to(tl.float32)[None, :]
    new_low = rotated_low * cos_low - rotated_high * sin_low
    new_high = rotated_high * cos_high + rotated_low * sin_high
    # Values keep their bits: they are chosen, not multiplied by one.
    new_low = tl.where(rotates[:, None], new_low, low).to(DTYPE)
    new_high = tl.where(rotates[:, None], new_high, high).to(DTYPE)
    query_mask = is_query[:, None] & inside[None, :]
    tl.store(here, new_low, mask=query_mask)
    tl.store(here + HALF, new_high, mask=query_mask)
    cached = exists & (head >= heads)
    kv_head = tl.where(rotates, head - heads, head - heads - kv_heads)
    offset = kv_head.to(tl.int64) * head_stride + tl.where(rotates, 0, 1).to(tl.int64) * half_stride
    page = (slot // PAGE).to(tl.int64)
    row = page * page_stride + (slot % PAGE).to(tl.int64) * token_stride
    there = pool + row + offset[:, None] + d[None, :]
    cached_mask = cached[:, None] & inside[None, :]
    if FP8:
        words, scale = quantised(new_low.to(tl.float32), new_high.to(tl.float32))
        tl.store(there, words, mask=cached_mask)
        place = ((page * kv_heads + kv_head) * PAGE + slot % PAGE) * 2 + tl.where(rotates, 0, 1)
        tl.store(scales + place, scale, mask=cached)
    else:
        tl.store(there, new_low, mask=cached_mask)
        tl.store(there + HALF, new_high, mask=cached_mask)


@triton.jit(do_not_specialize=["heads", "kv_heads"])
def rope_kv_kernel(
    qkv, q_norm, k_norm, cos, sin, positions, slots, pool, scales,
    heads, kv_heads, qkv_stride, page_stride, half_stride, token_stride, head_stride, eps,
    SIZE: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr, PAGE: tl.constexpr, NORMS: tl.constexpr,
    FP8: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Grid: tokens × blocks of heads. `slots [T]`: page · PAGE + offset, -1: the row is padding."""
    let_next_start(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    wait_for_those_before(DEPENDENT)
    if slot < 0:
        return
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    d = tl.arange(0, BLOCK_HALF)
    mask = (head < heads + 2 * kv_heads)[:, None] & (d < SIZE // 2)[None, :]
    here = qkv + token * qkv_stride + head[:, None] * SIZE + d[None, :]
    low = tl.load(here, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(here + SIZE // 2, mask=mask, other=0.0).to(tl.float32)
    finish_heads(
        low, high, here, head, token, slot, q_norm, k_norm, cos, sin, positions, pool, scales,
        heads, kv_heads, page_stride, half_stride, token_stride, head_stride, eps, SIZE, BLOCK_HALF, PAGE, NORMS, FP8,
    )  # fmt: skip


@triton.jit(do_not_specialize=["heads", "kv_heads", "plane_stride", "planes_width", "layout_stride", "splits"])
def expand_rope_kv_kernel(
    qkv, q_norm, k_norm, cos, sin, positions, slots, pool, scales,
    weights, planes, row_adapters, adapters, pages, layouts,
    heads, kv_heads, qkv_stride, page_stride, half_stride, token_stride, head_stride, eps,
    plane_stride, planes_width, layout_stride, splits,
    SIZE: tl.constexpr, BLOCK_HALF: tl.constexpr, PAGE: tl.constexpr, NORMS: tl.constexpr, FP8: tl.constexpr,
    WEIGHTS_PAGE: tl.constexpr, GRAIN: tl.constexpr, BLOCK_R: tl.constexpr, ALIGNED: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The same of qkv and its adapters' deltas, from the planes that shrink left. Grid: tokens × heads."""
    let_next_start(DEPENDENT)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot < 0:
        wait_for_those_before(DEPENDENT)
        return
    DTYPE: tl.constexpr = qkv.dtype.element_ty
    one = tl.program_id(1)
    number = (one >= heads).to(tl.int32) + (one >= heads + kv_heads).to(tl.int32)
    first = tl.where(number == 0, one, (one - heads) % kv_heads) * SIZE
    width = tl.where(number == 0, heads, kv_heads) * SIZE
    adapter = tl.load(row_adapters + token)
    if DEPENDENT:
        fetch_slice(
            weights, adapters, pages, layouts, layout_stride, adapter, first, width, number,
            WEIGHTS_PAGE, GRAIN, 2 * BLOCK_HALF,
        )  # fmt: skip
    wait_for_those_before(DEPENDENT)
    head = one + tl.arange(0, 1)
    d = tl.arange(0, BLOCK_HALF)
    mask = (d < SIZE // 2)[None, :]
    here = qkv + token * qkv_stride + head[:, None] * SIZE + d[None, :]
    low = tl.load(here, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(here + SIZE // 2, mask=mask, other=0.0).to(tl.float32)
    low += slice_delta(
        planes, weights, adapters, pages, layouts, plane_stride, planes_width, layout_stride, splits,
        token, adapter, first, width, number, WEIGHTS_PAGE, GRAIN, BLOCK_HALF, BLOCK_R, ALIGNED,
    )[None, :]  # fmt: skip
    high += slice_delta(
        planes, weights, adapters, pages, layouts, plane_stride, planes_width, layout_stride, splits,
        token, adapter, first + SIZE // 2, width, number, WEIGHTS_PAGE, GRAIN, BLOCK_HALF, BLOCK_R, ALIGNED,
    )[None, :]  # fmt: skip
    # Rounded as expand rounds; beyond the half, what was added belongs to others.
    low = tl.where(mask, low.to(DTYPE).to(tl.float32), 0.0)
    high = tl.where(mask, high.to(DTYPE).to(tl.float32), 0.0)
    finish_heads(
        low, high, here, head, token, slot, q_norm, k_norm, cos, sin, positions, pool, scales,
        heads, kv_heads, page_stride, half_stride, token_stride, head_stride, eps, SIZE, BLOCK_HALF, PAGE, NORMS, FP8,
    )  # fmt: skip


def aligned(size: int, grain: int) -> bool:
    """Whether halves of heads lie between multiples of the grain, as `slice_delta` may be promised."""
    half = size // 2
    return half & (half - 1) == 0 and grain % half == 0


def expand_warps(size: int, item: int = 2) -> int:
    """A half of a head is little for more than one warp, unless it is long. `item`: bytes of a weight; where it is one,
    as many threads would each have more of them than registers."""
    if item == 1:
        return WARPS
    return 1 if size <= 64 else 2


def specializations() -> list[Specialization]:
    """Every head size and element type, with and without norms over the heads, alone and behind an expand, to a pool
    of the model's type and of 8 bits."""
    return also_dependent(
        [
            _form(dtype, size, norms, grain, stored, fp8)
            for fp8 in (False, True)
            for dtype in ("bf16", "fp16")
            for size in SHIPPED_SIZES
            for norms in (False, True)
            for grain, stored in ((None, Stored("", "")), *product((16, 128), stored_beside(dtype)))
        ]
    )


def _form(dtype: str, size: int, norms: bool, grain: int | None, stored: Stored, fp8: bool) -> Specialization:
    """Behind an expand, of weights that are `stored` so, where a grain is given; `fp8`: keys and values are."""
    tensors = dict.fromkeys(("qkv", "q_norm", "k_norm", "cos", "sin"), f"*{dtype}")
    tensors |= dict.fromkeys(("pool", "scales"), "*i16" if fp8 else f"*{dtype}")
    strides = ("qkv_stride", "page_stride", "half_stride", "token_stride", "head_stride")
    arguments = tensors | dict.fromkeys(("positions", "slots"), "*i32") | {"eps": "fp32"}
    arguments |= dict.fromkeys(("heads", "kv_heads", *strides), "i32")
    constants = {"SIZE": size, "BLOCK_HALF": triton.next_power_of_2(size // 2), "PAGE": PAGE_TOKENS, "NORMS": norms}
    constants["FP8"] = fp8
    name = f"rope_kv {dtype} d{size}{' norms' if norms else ''}{' fp8' if fp8 else ''}"
    if grain is None:
        constants["BLOCK_HEADS"] = HEADS_AT_ONCE
        return Specialization(name, rope_kv_kernel, arguments, constants, WARPS, 1, divisible=frozenset(strides))
    arguments |= {"weights": stored.pointer, "planes": "*fp32"}
    arguments |= dict.fromkeys(("row_adapters", "adapters", "pages", "layouts"), "*i32")
    arguments |= dict.fromkeys(("plane_stride", "planes_width", "layout_stride", "splits"), "i32")
    constants |= {"WEIGHTS_PAGE": 1 << 15, "GRAIN": grain, "BLOCK_R": RANKS_AT_ONCE, "ALIGNED": aligned(size, grain)}
    return Specialization(
        f"expand_{name} grain{grain}{stored.label}", expand_rope_kv_kernel, arguments, constants,
        expand_warps(size, 1 if stored.label else 2), 2, divisible=frozenset(strides), cards=stored.cards,
    )  # fmt: skip
