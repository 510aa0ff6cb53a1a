"""The operations of a decoder, as the decoder calls them: native code's where there is some, else the reference's. A
GPU's are a class of their own. `dispatch` chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lorafleet_kernels import reference
from lorafleet_kernels.batch import AttentionBatch, HeadSizes
from lorafleet_kernels.native import Native, NativeAttention, fits, turn_back
from lorafleet_kernels.native_forward import LayerWeights, NativeLayers
from lorafleet_kernels.native_lora import AdapterTable, NativeLora
from lorafleet_kernels.reference_attention import ReferenceAttention, Scratch
from lorafleet_kernels.reference_fp8 import ReferenceFp8Attention


class Attention(Protocol):
    """One step's attention, for every layer: rotates, writes keys and values to their pages, attends."""

    def __call__(self, layer: int, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None) -> Tensor:
        """`qkv [T, (heads + 2 · kv_heads) · size]`, which may be overwritten → `[T, heads · size]`."""
        ...


class WholeLayers(Protocol):
    """All layers of a decoder as one operation, which is faster than one by one."""

    def takes(self, attend: object, lora: object) -> bool:
        """Whether it knows this step's attention and adapters."""
        ...

    def __call__(self, x: Tensor, attend: Any, lora: Any) -> Tensor:
        """`x [T, H]`, the embeddings, becomes the hidden states before the last norm. For what it takes."""
        ...


class Operations:
    """The operations of a decoder on one device and element type."""

    def __init__(self, native: Native | None) -> None:
        self._native = native
        self._scratch = Scratch()

    @property
    def native(self) -> bool:
        """Whether adapters' tables and native operations are in use."""
        return self._native is not None

    @property
    def take_fp8(self) -> bool:
        """Whether keys and values may be of 8 bits: native operations know the model's type only."""
        return self._native is None

    @property
    def aligns_adapters(self) -> bool:
        """Whether adapters are read by tiles, from `lorafleet_kernels.gpu.lora.batch`, so that their rows have to begin
        at a grain."""
        return False

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if self._native is None:
            return reference.rms_norm(x, weight, eps)
        return self._native.add_rms_norm(x, None, weight, eps)

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`x += delta` in place, and its norm."""
        if self._native is None:
            return reference.add_rms_norm(x, delta, weight, eps)
        return self._native.add_rms_norm(x, delta, weight, eps)

    def silu_and_mul(self, x: Tensor) -> Tensor:
        return reference.silu_and_mul(x) if self._native is None else self._native.silu_and_mul(x)

    @property
    def argmax_obeys(self) -> bool:
        """Whether `argmax` takes masks."""
        return True

    def argmax(self, logits: Tensor, allowed: Sequence[bytes | None] = ()) -> Tensor:
        """Tokens `[n]` of `logits [n, V]`, where `allowed` has a mask of those that it allows (`reference.argmax`)."""
        return (self._native or reference).argmax(logits, allowed)

    def tiles_fit(self, weight: Tensor) -> bool:
        """Whether this processor has matrix tiles for a weight `[O, K]`: then the three operations below are there."""
        return self._native is not None and self._native.tiles_fit(weight)

    def turn(self, weight: Tensor) -> Tensor:
        """`weight [O, K]` in the layout of `multiply`, flat."""
        return self._on_tiles.turn(weight)

    def turn_back(self, turned: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The weight `[O, K]` of that shape that `turn` was given."""
        return turn_back(turned, shape)

    def multiply(self, x: Tensor, turned: Tensor, outputs: int, bias: Tensor | None) -> Tensor:
        """`x [T, K]` times a turned weight: `[T, outputs]`."""
        return self._on_tiles.multiply(x, turned, outputs, bias)

    def multiply_plain(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x [T, K]` times `weight [O, K]` as it lies: `[T, O]`. For few rows."""
        return self._on_tiles.multiply_plain(x, weight, bias)

    @property
    def _on_tiles(self) -> Native:
        if self._native is None:
            raise RuntimeError("matrix tiles were asked for where there are none: ask `tiles_fit` first")
        return self._native

    def attention(
        self, pool: Tensor, batch: AttentionBatch, sizes: HeadSizes, tables: tuple[Tensor, Tensor],
        scales: Tensor | None = None,
    ) -> Attention:  # fmt: skip
        """For one step over `pool [layers, P, 2, 16, kv_heads, size]`; `tables`: cos and sin `[positions, 1, size]`.
        `scales [layers, P, kv_heads, 16, 2]`: of a pool of 8 bits (`reference_fp8`), for operations that `take_fp8`."""
        if scales is not None:
            return ReferenceFp8Attention(pool, scales, batch, sizes, tables)
        if self._native is None or not fits(sizes):
            return ReferenceAttention(pool, batch, sizes, tables, self._scratch)
        return NativeAttention(self._native, pool, batch, sizes, tables)

    def layers(
        self, layers: Sequence[LayerWeights], sizes: HeadSizes, inner: int,
        memory: Callable[[tuple[int, ...], torch.dtype], Tensor],
    ) -> WholeLayers | None:  # fmt: skip
        """All layers as one operation, of turned weights; None where there are no native operations."""
        if self._native is None or not fits(sizes):
            return None
        return NativeLayers(self._native, layers, sizes, inner, memory)

    def fused_layers(self, layers: Sequence[Any], eps: float) -> WholeLayers | None:
        """All layers as one operation that calls products as they are; None where there is none."""
        return None

    def lora(self, segments: Sequence[tuple[int, int, AdapterTable]]) -> NativeLora:
        """For one step: rows `begin .. end` get the deltas of an adapter. Native only; the reference has no tables."""
        if self._native is None:
            raise RuntimeError("adapters' tables were asked for without native operations: ask `native` first")
        return NativeLora(self._native, segments)
