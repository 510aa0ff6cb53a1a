"""What a decoder needs of the other ranks when its weights are spread over several, whatever carries it."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

Partition = Literal["replicated", "slora"]
"""How an adapter's matrices are spread: see `model.parallel`."""


class Collectives(Protocol):
    """Every rank calls the same ones in the same order; each returns the same values on every rank."""

    rank: int
    size: int

    def all_reduce(self, part: Tensor) -> Tensor:
        """The sum of the ranks' parts, in place where `part` is contiguous."""
        ...

    def all_gather(self, part: Tensor) -> Tensor:
        """`part [n]` of every rank, in order of ranks: `[size, n]`."""
        ...

    def gather_columns(self, part: Tensor, columns: int) -> Tensor:
        """`part [n, ⌈columns / size⌉ or less]` of every rank, side by side, on rank 0: `[n, columns]`. On other ranks
        something that nobody reads."""
        ...
