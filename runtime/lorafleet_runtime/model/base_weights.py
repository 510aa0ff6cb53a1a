"""The base model's own matrices, as adapters that depend on them ask for them at load: plain, one at a time."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lorafleet_runtime.model.errors import InvalidAdapter


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
        raise InvalidAdapter(f"{key} can only be read beside the base model's weights, and they are not at hand here")
    return base
