"""A decoder's layers with as few launches as the kernels allow: adapters' deltas are added where the base model's
outputs are read next. The decoder's own order of operations is the specification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from lorafleet_kernels.gpu import elementwise
from lorafleet_kernels.gpu.attention.step import TritonAttention
from lorafleet_kernels.gpu.lora.step import LoraStep

FUSED_ROWS = 128
"""Up to so many rows an expand is part of the operation that follows. It goes row by row there, and reads an adapter's
Bᵀ once for each; a tile of its own reads it once for all."""


Linear = Callable[[Tensor], Tensor]


class GpuLayer(Protocol):
    @property
    def input_norm(self) -> Tensor: ...
    @property
    def qkv(self) -> Linear: ...
    @property
    def q_norm(self) -> Tensor | None: ...
    @property
    def k_norm(self) -> Tensor | None: ...
    @property
    def o(self) -> Linear: ...
    @property
    def post_norm(self) -> Tensor: ...
    @property
    def gate_up(self) -> Linear: ...
    @property
    def down(self) -> Linear: ...


class TritonLayers:
    """All layers of a decoder, for steps in which nothing comes between two operations."""

    def __init__(self, layers: Sequence[GpuLayer], eps: float, dependent: bool = False) -> None:
        """`dependent`: of norms and activations; adapters and attention bring their own."""
        self._layers = layers
        self._eps = eps
        self._dependent = dependent

    def takes(self, attend: object, lora: object) -> bool:
        return isinstance(attend, TritonAttention) and (lora is None or isinstance(lora, LoraStep))

    def __call__(self, x: Tensor, attend: TritonAttention, lora: LoraStep | None) -> Tensor:
        """`x [T, H]`, the embeddings, becomes the hidden states before the last norm."""
        h = elementwise.rms_norm(x, self._layers[0].input_norm, self._eps, self._dependent)
        for index, layer in enumerate(self._layers):
            attended = self._attend(index, h, layer, attend, lora)
            h = self._add_and_norm(index, "o", attended, layer.o, x, layer.post_norm, lora)
            h = self._activate(index, h, layer.gate_up, lora)
            if index + 1 < len(self._layers):
                h = self._add_and_norm(index, "down", h, layer.down, x, self._layers[index + 1].input_norm, lora)
            else:
                down = _product(index, "down", h, layer.down, lora)
                if lora is not None:
                    lora.expand(index, "down", down)
                x += down
        return x

    def _attend(
        self, index: int, h: Tensor, layer: GpuLayer, attend: TritonAttention, lora: LoraStep | None
    ) -> Tensor:
        qkv = _product(index, "qkv", h, layer.qkv, lora)
        pending = None
        if lora is not None and len(h) <= FUSED_ROWS:
            pending = lora.pending(index, "qkv", qkv)
        elif lora is not None:
            lora.expand(index, "qkv", qkv)
        return attend(index, qkv, layer.q_norm, layer.k_norm, pending)

    def _add_and_norm(
        self, layer: int, group: str, h: Tensor, linear: Linear, x: Tensor, weight: Tensor, lora: LoraStep | None
    ) -> Tensor:
        """`x += linear(h) + delta`, and its norm."""
        y = _product(layer, group, h, linear, lora)
        if lora is not None and len(x) <= FUSED_ROWS:
            return lora.expand_add_rms_norm(layer, group, x, y, weight, self._eps)
        if lora is not None:
            lora.expand(layer, group, y)
        return elementwise.add_rms_norm(x, y, weight, self._eps, self._dependent)

    def _activate(self, layer: int, h: Tensor, linear: Linear, lora: LoraStep | None) -> Tensor:
        gate_up = _product(layer, "gate_up", h, linear, lora)
        if lora is not None and len(h) <= FUSED_ROWS:
            return lora.expand_silu_and_mul(layer, gate_up)
        if lora is not None:
            lora.expand(layer, "gate_up", gate_up)
        return elementwise.silu_and_mul(gate_up, self._dependent)


def _product(layer: int, group: str, h: Tensor, linear: Linear, lora: LoraStep | None) -> Tensor:
    """`linear(h)`; a group's shrink has been launched too, so that its expand may follow."""
    if lora is None:
        return linear(h)
    if lora.beside is None:
        lora.shrink(layer, group, h)
        return linear(h)
    lora.beside.begin(lambda: lora.shrink(layer, group, h))
    y = linear(h)
    lora.beside.join()
    return y
