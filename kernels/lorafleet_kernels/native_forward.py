"""All layers of a step in one call of the native library, where every product is on matrix tiles.

The same operations in the same order as one by one, without the caller between them: at 32 rows of a small model, that
and new memory for every intermediate were a tenth of the step."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from ctypes import POINTER, c_float, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from lorafleet_kernels.batch import HeadSizes
from lorafleet_kernels.native import Native, NativeAttention
from lorafleet_kernels.native_lora import NativeLora

PADDING = 32
"""Rows are padded to this in what lies between two operations: tiles read whole."""
Turned = tuple[Tensor, Tensor | None]
"""A product's weight as `Native.turn` laid it out, and its bias."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Of one layer. The norms of q and k are both there or both None."""

    input_norm: Tensor
    qkv: Turned
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Turned
    post_norm: Tensor
    gate_up: Turned
    down: Turned


class _Linear(ctypes.Structure):
    _fields_ = (("turned", c_void_p), ("bias", c_void_p))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("input_norm", "q_norm", "k_norm", "post_norm")),
        *((name, _Linear) for name in ("qkv", "o", "gate_up", "down")),
    )


class _Decoder(ctypes.Structure):
    _fields_ = (
        ("layer", POINTER(_Layer)),
        *((name, c_int64) for name in ("layers", "width", "inner")),
        ("eps", c_float),
    )


class NativeLayers:
    """A decoder's layers. `memory` gives zeros of a shape and type, for what lies between two operations."""

    def __init__(
        self, native: Native, layers: Sequence[LayerWeights], sizes: HeadSizes, inner: int,
        memory: Callable[[tuple[int, ...], torch.dtype], Tensor],
    ) -> None:  # fmt: skip
        self._alive = layers
        self._call = native.functions["lorafleet_forward"]
        self._memory = memory
        self._work = torch.empty(0)
        width = layers[0].input_norm.numel()
        self._row = 2 * width + (2 * sizes.heads + 2 * sizes.kv_heads) * sizes.size + 3 * inner
        self._layers = (_Layer * len(layers))(*(_Layer(**_pointers(layer)) for layer in layers))
        self._decoder = _Decoder(self._layers, len(layers), width, inner, sizes.eps)

    def takes(self, attend: object, lora: object) -> bool:
        return isinstance(attend, NativeAttention) and (lora is None or isinstance(lora, NativeLora))

    def __call__(self, x: Tensor, attend: NativeAttention, lora: NativeLora | None) -> Tensor:
        """`x [T, H]`, the embeddings, becomes the hidden states before the last norm."""
        rows = -(-x.shape[0] // PADDING) * PADDING
        if self._work.numel() < rows * self._row:
            self._work = self._memory((rows * self._row,), x.dtype)
        segments, count = (None, 0) if lora is None else (lora.segments, len(lora.segments))
        step, pool, elements = attend.step
        work = self._work.data_ptr()
        if self._call(ctypes.addressof(self._decoder), step, segments, count, pool, elements, x.data_ptr(), work):
            raise MemoryError("no memory to lay a prompt's keys and values out: lower --max-batched-tokens")
        return x


def _pointers(layer: LayerWeights) -> Mapping[str, object]:
    norms = {name: getattr(layer, name) for name in ("input_norm", "q_norm", "k_norm", "post_norm")}
    products: dict[str, Turned] = {name: getattr(layer, name) for name in ("qkv", "o", "gate_up", "down")}
    return {name: None if norm is None else norm.data_ptr() for name, norm in norms.items()} | {
        name: _Linear(turned.data_ptr(), None if bias is None else bias.data_ptr())
        for name, (turned, bias) in products.items()
    }
