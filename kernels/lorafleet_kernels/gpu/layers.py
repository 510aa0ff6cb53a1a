"""A decoder's layers with as few launches as the kernels allow: adapters' deltas are added where the base model's
outputs are read next. The decoder's own order of operations is the specification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from lorafleet_kernels.gpu import elementwise
from lorafleet_kernels.gpu.attention import TritonAttention
from lorafleet_kernels.gpu.lora import LoraStep

FUSED_ROWS = 128
"""Up to so many rows an expand is part of the operation that follows. It goes row by row there, and reads an adapter's
Bᵀ once for each; a tile of its own reads it once for all."""


class GpuLayer(Protocol):
    @property
    def input_norm(self) -> Tensor: ...
    @property
    def qkv(self) -> Callable[[Tensor], Tensor]: ...
    @property
    def q_norm(self) -> Tensor | None: ...
    @property
    def k_norm(self) -> Tensor | None: ...
    @property
    def o(self) -> Callable[[Tensor], Tensor]: ...
    @property
    def post_norm(self) -> Tensor: ...
    @property
    def gate_up(self) -> Callable[[Tensor], Tensor]: ...
    @property
    def down(self) -> Callable[[Tensor], Tensor]: ...


class TritonLayers:
    """All layers of a decoder, for steps in which nothing comes between two operations."""

    def __init__(self, layers: Sequence[GpuLayer], eps: float) -> None:
        self._layers = layers
        self._eps = eps

    def takes(self, attend: object, lora: object) -> bool:
        return isinstance(attend, TritonAttention) and (lora is None or isinstance(lora, LoraStep))

    def __call__(self, x: Tensor, attend: TritonAttention, lora: LoraStep | None) -> Tensor:
        """`x [T, H]`, the embeddings, becomes the hidden states before the last norm."""
        h = elementwise.rms_norm(x, self._layers[0].input_norm, self._eps)
        for index, layer in enumerate(self._layers):
            attended = self._attend(index, h, layer, attend, lora)
            h = self._add_and_norm(index, "o", attended, layer.o(attended), x, layer.post_norm, lora)
            h = self._activate(index, h, layer.gate_up(h), lora)
            down = layer.down(h)
            if index + 1 < len(self._layers):
                h = self._add_and_norm(index, "down", h, down, x, self._layers[index + 1].input_norm, lora)
            else:
                if lora is not None:
                    lora(index, "down", h, down)
                x += down
        return x

    def _attend(
        self, index: int, h: Tensor, layer: GpuLayer, attend: TritonAttention, lora: LoraStep | None
    ) -> Tensor:
        qkv = layer.qkv(h)
        pending = None
        if lora is not None and len(h) <= FUSED_ROWS:
            lora.shrink(index, "qkv", h)
            pending = lora.pending(index, "qkv", qkv)
        elif lora is not None:
            lora(index, "qkv", h, qkv)
        return attend(index, qkv, layer.q_norm, layer.k_norm, pending)

    def _add_and_norm(
        self, layer: int, group: str, h: Tensor, y: Tensor, x: Tensor, weight: Tensor, lora: LoraStep | None
    ) -> Tensor:
        """`x += y + delta`, and its norm; `group` made `y` of `h`."""
        if lora is not None and len(x) <= FUSED_ROWS:
            lora.shrink(layer, group, h)
            return lora.expand_add_rms_norm(layer, group, x, y, weight, self._eps)
        if lora is not None:
            lora(layer, group, h, y)
        return elementwise.add_rms_norm(x, y, weight, self._eps)

    def _activate(self, layer: int, h: Tensor, gate_up: Tensor, lora: LoraStep | None) -> Tensor:
        if lora is not None and len(h) <= FUSED_ROWS:
            lora.shrink(layer, "gate_up", h)
            return lora.expand_silu_and_mul(layer, gate_up)
        if lora is not None:
            lora(layer, "gate_up", h, gate_up)
        return elementwise.silu_and_mul(gate_up)
