"""A step's attention on a GPU: two or three launches a layer, over metadata that one copy brought."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorafleet_kernels.batch import AttentionBatch, HeadSizes
from lorafleet_kernels.gpu.attention.decode_work import ITEM, most_slots
from lorafleet_kernels.gpu.attention.plan import Bounds, Cut, DevicePlan, plan_attention
from lorafleet_kernels.gpu.attention.prefill_work import PREFILL_ITEM
from lorafleet_kernels.gpu.forms.attention import (
    PAGE_TOKENS,
    Capability,
    DecodeTiles,
    PrefillTiles,
    decode_tiles,
    group_tile,
    half_tile,
    padded,
    prefill_tiles,
)
from lorafleet_kernels.gpu.kernels import rope_kv
from lorafleet_kernels.gpu.kernels.paged_decode import paged_decode_kernel
from lorafleet_kernels.gpu.kernels.paged_decode_fp8 import paged_decode_fp8_kernel
from lorafleet_kernels.gpu.kernels.paged_prefill import paged_prefill_kernel
from lorafleet_kernels.gpu.kernels.paged_prefill_fp8 import paged_prefill_fp8_kernel
from lorafleet_kernels.gpu.launch import FUSED, in_step
from lorafleet_kernels.gpu.lora.step import PendingExpand
from lorafleet_kernels.gpu.specialization import INTERPRETED
from lorafleet_kernels.reference_fp8 import FP8, FP8_SIZE


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What the launches depend on apart from the step: of a model's heads on one card. `dependent`: whether those of
    decodes start before the kernels ahead of them have ended."""

    sizes: HeadSizes
    decode: DecodeTiles
    prefill: PrefillTiles
    cut: Cut
    dependent: bool = False

    @classmethod
    def of(
        cls, sizes: HeadSizes, dtype: torch.dtype, capability: Capability, processors: int,
        kv: torch.dtype | None = None, forms: tuple[DecodeTiles, PrefillTiles] | None = None,
    ) -> AttentionShape:  # fmt: skip
        """`processors`: multiprocessors of the card; `kv`: what the pool has, `dtype` where it is not said; `forms`:
        the defaults for these where none are given. Raises ValueError for heads that the kernels do not know."""
        if sizes.size % 2 or sizes.heads % sizes.kv_heads:
            raise ValueError(
                f"{sizes.heads} heads over {sizes.kv_heads} of size {sizes.size}: the kernels want an even size and "
                "equal groups"
            )
        if kv == FP8 and sizes.size % FP8_SIZE:
            raise ValueError(f"heads of size {sizes.size}: keys and values of 8 bits want a multiple of {FP8_SIZE}")
        group = sizes.heads // sizes.kv_heads
        decode, prefill = forms or (
            decode_tiles(sizes.size, group, kv or dtype, capability),
            prefill_tiles(sizes.size, group, dtype, capability),
        )
        programs = max(1, processors * decode.resident // sizes.kv_heads)
        return cls(sizes, decode, prefill, Cut(programs, decode.pages, prefill.queries(group)))

    @property
    def group(self) -> int:
        return self.sizes.heads // self.sizes.kv_heads


@dataclass(frozen=True, slots=True)
class DecodeScratch:
    """Where pieces of cut rows leave their sums, for all layers and steps of one stream; `arrived` is all zeros
    between launches."""

    sums: Tensor
    stats: Tensor
    arrived: Tensor

    @classmethod
    def of(cls, shape: AttentionShape, device: torch.device) -> DecodeScratch:
        # One at least: a kernel's pointer must point somewhere.
        slots, kv_heads = max(1, most_slots(shape.cut.programs)), shape.sizes.kv_heads
        sums = torch.empty(slots, kv_heads, shape.group, shape.sizes.size, device=device)
        stats = torch.empty(slots, kv_heads, shape.group, 2, device=device)
        return cls(sums, stats, torch.zeros(slots, kv_heads, dtype=torch.int32, device=device))


class TritonAttention:
    """Callable as `operations.Attention`. Rows beyond the step's, in a captured graph, stay as the memory was."""

    def __init__(
        self, pool: Tensor, plan: DevicePlan, shape: AttentionShape, tables: tuple[Tensor, Tensor],
        scratch: DecodeScratch, scales: Tensor | None = None,
    ) -> None:  # fmt: skip
        """`pool [layers, P, 2, 16, kv_heads, D]`, in any order in memory but for D; `tables [positions, 1, D]`. With
        `scales [layers, P, kv_heads, 16, 2]` the pool is of 8 bits, as `reference_fp8` says, and in that very order."""
        if pool.stride(-1) != 1 or not all(t.is_contiguous() for t in tables):
            raise ValueError("the kernels want the features of a head one after the other, in the pool and the tables")
        if scales is not None and not (pool.is_contiguous() and scales.is_contiguous()):
            raise ValueError("keys and values of 8 bits and their scales want to lie in the order of their dimensions")
        self._pool = pool if scales is None else pool.view(torch.int16)
        self._scales = scales
        self._plan = plan
        self._shape = shape
        self._tables = tables
        self._scratch = scratch
        _, page, half, token, head, _ = self._pool.stride()
        self._strides = (page, half, token, head)
        self._scale = math.log2(math.e) / math.sqrt(shape.sizes.size)

    def __call__(
        self, layer: int, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None,
        pending: PendingExpand | None = None,
    ) -> Tensor:  # fmt: skip
        """`pending`: what the adapters still add to qkv, in the same launch as all else that is done to it."""
        sizes = self._shape.sizes
        out = torch.empty(qkv.shape[0], sizes.heads * sizes.size, dtype=qkv.dtype, device=qkv.device)
        self._rotate_and_write(layer, qkv, q_norm, k_norm, pending)
        if self._plan.decode_bounds.shape[0]:
            self.decode(layer, qkv, out)
        if self._plan.prefill_items.shape[0]:
            self.prefill(layer, qkv, out)
        return out

    def _rotate_and_write(
        self, layer: int, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, pending: PendingExpand | None
    ) -> None:
        sizes, plan, pool = self._shape.sizes, self._plan, self._pool[layer]
        scales = pool if self._scales is None else self._scales[layer].view(torch.int16)
        every = sizes.heads + 2 * sizes.kv_heads
        norms = q_norm is not None and k_norm is not None
        tensors = (
            qkv, q_norm if norms else qkv, k_norm if norms else qkv, *self._tables, plan.positions, plan.slots, pool,
            scales,
        )  # fmt: skip
        numbers = (sizes.heads, sizes.kv_heads, qkv.stride(0), *self._strides, sizes.eps)
        shared = {"SIZE": sizes.size, "BLOCK_HALF": padded(sizes.size // 2), "PAGE": PAGE_TOKENS, "NORMS": norms}
        shared["FP8"] = self._scales is not None
        order = in_step(self._shape.dependent)
        if pending is None:
            rope_kv.rope_kv_kernel[(plan.slots.shape[0], -(-every // rope_kv.HEADS_AT_ONCE))](
                *tensors, *numbers, **shared, BLOCK_HEADS=rope_kv.HEADS_AT_ONCE, num_warps=rope_kv.WARPS, **order
            )
            return
        rope_kv.expand_rope_kv_kernel[(plan.slots.shape[0], every)](
            *tensors, *pending.tables, *numbers, *pending.counts, **shared,
            WEIGHTS_PAGE=pending.page, GRAIN=pending.grain, BLOCK_R=rope_kv.RANKS_AT_ONCE,
            ALIGNED=rope_kv.aligned(sizes.size, pending.grain),
            num_warps=rope_kv.expand_warps(sizes.size, pending.tables[0].element_size()), num_stages=2, **order,
        )  # fmt: skip

    def decode(self, layer: int, q: Tensor, out: Tensor) -> None:
        """Of the step's decode rows alone, whose keys and values are in the pool: `out [T, heads · D]` from the queries
        that rows of `q` begin with."""
        shape, plan, tiles, scratch = self._shape, self._plan, self._shape.decode, self._scratch
        pool = self._pool[layer]
        if self._scales is not None:
            paged_decode_fp8_kernel[(shape.sizes.kv_heads, shape.cut.programs)](
                q, out, pool, self._scales[layer].view(torch.int32), plan.pages, plan.decode_items, plan.decode_bounds,
                scratch.sums, scratch.stats, scratch.arrived,
                shape.group, q.stride(0), out.stride(0), self._scale,
                SIZE=shape.sizes.size, BLOCK_G=group_tile(shape.group), BLOCK_H=half_tile(shape.sizes.size),
                BLOCK_N=tiles.tokens, PAGE=PAGE_TOKENS, ITEM=ITEM, WIDE=_wide(q),
                num_warps=tiles.warps, num_stages=tiles.stages, **in_step(shape.dependent),
            )  # fmt: skip
            return
        paged_decode_kernel[(shape.sizes.kv_heads, shape.cut.programs)](
            q, out, pool, plan.pages, plan.decode_items, plan.decode_bounds,
            scratch.sums, scratch.stats, scratch.arrived,
            shape.group, q.stride(0), out.stride(0), *self._strides, self._scale,
            SIZE=shape.sizes.size, BLOCK_G=group_tile(shape.group), BLOCK_D=padded(shape.sizes.size),
            BLOCK_N=tiles.tokens, PAGE=PAGE_TOKENS, ITEM=ITEM, UPCAST=INTERPRETED,
            num_warps=tiles.warps, num_stages=tiles.stages, **in_step(shape.dependent),
        )  # fmt: skip

    def prefill(self, layer: int, q: Tensor, out: Tensor) -> None:
        """The same of its chunks."""
        shape, plan, tiles = self._shape, self._plan, self._shape.prefill
        pool = self._pool[layer]
        if self._scales is not None:
            paged_prefill_fp8_kernel[(shape.sizes.kv_heads, plan.prefill_items.shape[0])](
                q, out, pool, self._scales[layer].view(torch.int32), plan.pages, plan.prefill_items,
                shape.group, q.stride(0), out.stride(0), self._scale,
                SIZE=shape.sizes.size, BLOCK_M=tiles.rows, BLOCK_H=half_tile(shape.sizes.size), BLOCK_N=tiles.tokens,
                PAGE=PAGE_TOKENS, ITEM=PREFILL_ITEM, WIDE=_wide(q),
                num_warps=tiles.warps, num_stages=tiles.stages, **FUSED,
            )  # fmt: skip
            return
        paged_prefill_kernel[(shape.sizes.kv_heads, plan.prefill_items.shape[0])](
            q, out, pool, plan.pages, plan.prefill_items,
            shape.group, q.stride(0), out.stride(0), *self._strides, self._scale,
            SIZE=shape.sizes.size, BLOCK_M=tiles.rows, BLOCK_D=padded(shape.sizes.size), BLOCK_N=tiles.tokens,
            PAGE=PAGE_TOKENS, ITEM=PREFILL_ITEM, UPCAST=INTERPRETED,
            num_warps=tiles.warps, num_stages=tiles.stages, **FUSED,
        )  # fmt: skip


def attention_of_step(
    pool: Tensor, batch: AttentionBatch, shape: AttentionShape, tables: tuple[Tensor, Tensor], scratch: DecodeScratch,
    scales: Tensor | None = None,
) -> TritonAttention:  # fmt: skip
    """For one step alone, with memory of its own for what the kernels are told."""
    bounds = Bounds.of(batch)
    pinned = pool.device.type == "cuda"
    host = torch.empty(bounds.length(shape.cut), dtype=torch.int32, pin_memory=pinned)
    memory: np.ndarray[tuple[int, ...], np.dtype[np.int32]] = host.numpy()
    plan_attention(batch, shape.cut).pack(memory, bounds, shape.cut)
    device = host.to(pool.device, non_blocking=True)
    return TritonAttention(pool, DevicePlan.view(device, bounds, shape.cut), shape, tables, scratch, scales)


def _wide(q: Tensor) -> bool:
    """Whether elements of 8 bits are to become float32, not bfloat16."""
    return INTERPRETED or q.dtype == torch.float32
