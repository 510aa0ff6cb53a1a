"""What an operation over a ragged batch is told about it, once per step. Plain values, for every backend alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class HeadSizes:
    """`heads` query heads and `kv_heads` of `size` features; `eps` is that of the norms over a head, if any."""

    heads: int
    kv_heads: int
    size: int
    eps: float


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """S sequences with tokens in this step, T tokens in all. `positions [T]`; `counts [S]`: tokens of each;
    `pages [S]`: page ids of each, up to its last token. The first `decodes` sequences have one token each."""

    positions: Sequence[int]
    counts: Sequence[int]
    pages: Sequence[Sequence[int]]
    decodes: int


class LoraPart(Protocol):
    """One projection inside a fused layer: output columns `begin .. end`, `b [R, end - begin]`."""

    @property
    def begin(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def b(self) -> Tensor: ...


class LoraWeights(Protocol):
    """One fused layer of an adapter: `a [ΣR, K]`, and its parts."""

    @property
    def a(self) -> Tensor: ...
    @property
    def parts(self) -> Sequence[LoraPart]: ...
