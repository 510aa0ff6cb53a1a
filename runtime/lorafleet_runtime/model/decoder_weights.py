"""The matrices of a decoder that runs whole in this process, as adapters ask for them: `BaseWeights`."""

from __future__ import annotations

from torch import Tensor

from lorafleet_runtime.model.config import GROUPS
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.linear import Linear


class DecoderWeights:
    """The weights of a decoder of one rank.

    A packed product is unpacked for whoever asks and not kept, but for the last one: q, k and v come from one product.
    """

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self._last: tuple[Linear, Tensor] | None = None

    def projection(self, layer: int, target: str) -> Tensor:
        linear, begin, end = self._place(layer, target)
        if self._last is None or self._last[0] is not linear:
            self._last = None  # freed before the next is made
            self._last = (linear, linear.plain())
        return self._last[1][begin:end]

    def bias(self, layer: int, target: str) -> Tensor | None:
        linear, begin, end = self._place(layer, target)
        return None if linear.bias is None else linear.bias[begin:end]

    def embedding(self) -> Tensor:
        return self._model.embedding

    def lm_head(self) -> Tensor:
        self._last = None
        return self._model.lm_head.plain()

    def forget(self) -> None:
        """Free what was unpacked: an adapter has been read."""
        self._last = None

    def _place(self, layer: int, target: str) -> tuple[Linear, int, int]:
        parts = self._model.layers[layer]
        linears = {"qkv": parts.qkv, "o": parts.o, "gate_up": parts.gate_up, "down": parts.down}
        group = next(group for group, targets in GROUPS.items() if target in targets)
        begin = 0
        for other in GROUPS[group]:
            out = self._model.config.linear_shape(other)[0]
            if other == target:
                return linears[group], begin, begin + out
            begin += out
        raise AssertionError(target)
