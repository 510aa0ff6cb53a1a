"""The base model's own matrices, as adapters that depend on them ask for them at load: plain, one at a time."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lorafleet_runtime.model.config import GROUPS
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.errors import InvalidAdapter
from lorafleet_runtime.model.linear import Linear


class BaseWeights(Protocol):
    """Whole matrices, also where a rank holds a shard; in the dtype that the model runs in."""

    def projection(self, layer: int, target: str) -> Tensor:
        """`[out, in]` of one of `LORA_TARGETS`."""
        ...

    def bias(self, layer: int, target: str) -> Tensor | None:
        """`[out]`, or None where the model has no such bias."""
        ...

    def embedding(self) -> Tensor:
        """`[vocabulary, hidden]`."""
        ...

    def lm_head(self) -> Tensor:
        """`[vocabulary, hidden]`; the embedding where they are tied."""
        ...

    def forget(self) -> None:
        """An adapter has been read: free what was made for it."""
        ...


def needed(base: BaseWeights | None, key: str) -> BaseWeights:
    """`base`, or InvalidAdapter that says which tensor asks for it."""
    if base is None:
        raise InvalidAdapter(
            f"{key} depends on the base model's weights, of which a replica of several ranks holds parts only: serve "
            "the adapter from a base model with tensorParallel 1"
        )
    return base


class DecoderWeights:
    """The weights of a decoder that runs in this process.

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
