"""From a step's segments to the numbers of `LoraBatch`, on the host: no torch, no loop over rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lorafleet_kernels.gpu.forms.lora import GroupShape
from lorafleet_kernels.gpu.lora.batch import DESCRIPTION, SLICES
from lorafleet_kernels.native_lora import LORA_GROUPS

Ints = NDArray[np.int32]
Segment = tuple[int, int, int]
"""Rows `begin .. end`, and which of the step's adapters they have; -1 for the base model."""


class Slice(Protocol):
    """Where one projection lies in its layer's vector, in elements: `a [a_rows, k]`, `b [rank, end - begin]`; which
    columns of the fused output it feeds; and where its rows may begin."""

    @property
    def a(self) -> int: ...
    @property
    def b(self) -> int: ...
    @property
    def a_rows(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def begin(self) -> int: ...
    @property
    def grain(self) -> int: ...


@dataclass(frozen=True, slots=True)
class AdapterPlace:
    """Where a resident adapter is: the number of its layout among the described ones, and its pages, int32."""

    layout: int
    pages: Ints


@dataclass(frozen=True, slots=True)
class StepSizes:
    """How much a step's buffer holds: rows, work items, adapters, and pages of all of these together."""

    rows: int
    items: int
    adapters: int
    pages: int

    @property
    def parts(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Shapes of what lies in the buffer, one behind the other."""
        return (
            ("work", (self.items, 3)),
            ("adapters", (self.adapters, 2)),
            ("pages", (self.pages,)),
            ("row_adapters", (self.rows,)),
        )

    @property
    def places(self) -> Mapping[str, tuple[int, tuple[int, ...]]]:
        """By name, where it begins in the buffer, at a multiple of 16 bytes, and its shape."""
        found: dict[str, tuple[int, tuple[int, ...]]] = {}
        begin = 0
        for name, shape in self.parts:
            found[name] = begin, shape
            begin += -(-int(np.prod(shape)) // 4) * 4
        return found

    @property
    def total(self) -> int:
        """Numbers in the buffer."""
        begin, (rows,) = self.places["row_adapters"]
        return begin + -(-rows // 4) * 4


def most_items(rows: int, segments: int, block_m: int) -> int:
    """Work items that so many rows in so many segments can make: each segment has one that is not full."""
    return min(rows, rows // block_m + segments)


def describe(
    layers: Sequence[Mapping[str, Sequence[Slice]]], groups: Mapping[str, GroupShape], grain: int, max_rank: int
) -> Ints:
    """A layout's `[layers, groups, DESCRIPTION]`, in the order of `LORA_GROUPS`.

    Raises ValueError for ranks above `max_rank`, for which planes have no room; for rows of another grain; for offsets
    beyond int32; and for an A that is split over the ranks of tensor parallelism, whose h would have to be gathered.
    """
    described = np.zeros((len(layers), len(LORA_GROUPS), DESCRIPTION), np.int64)
    for layer, present in enumerate(layers):
        for name, slices in present.items():
            row = described[layer, LORA_GROUPS.index(name)]
            row[:2] = slices[0].a, sum(s.rank for s in slices)
            begins = np.cumsum((0, *groups[name].widths[:-1])).tolist()
            for s in slices:
                _check(s, f"layer {layer}, {name}", grain, max_rank)
                number = begins.index(s.begin)
                row[2 + 2 * number : 4 + 2 * number] = s.b, s.rank
    if described.max(initial=0) >= 1 << 31:
        raise ValueError(f"element {described.max()} of an adapter's layer has no int32 number; it has at most 2^31")
    return described.astype(np.int32)


def fill_step(
    buffer: Ints, sizes: StepSizes, segments: Sequence[Segment], places: Sequence[AdapterPlace], block_m: int
) -> None:
    """Write a step into `buffer [sizes.total]`, which one copy brings to the device. Segments become work items of at
    most `block_m` rows; with 1, the row variant, which needs none, there are none.

    Raises ValueError where the step is larger than the buffer, and for segments that are not of this step.
    """
    found = np.asarray(segments, np.int64).reshape(-1, 3)
    found = found[(found[:, 2] >= 0) & (found[:, 1] > found[:, 0])]
    begin, end, adapter = found.T
    if len(found) and (begin.min() < 0 or end.max() > sizes.rows or adapter.max() >= len(places)):
        raise ValueError(
            f"segments up to row {end.max()} and adapter {adapter.max()}: the step has {sizes.rows} rows and "
            f"{len(places)} adapters"
        )
    parts = {name: buffer[at : at + int(np.prod(shape))].reshape(shape) for name, (at, shape) in sizes.places.items()}
    parts["row_adapters"].fill(-1)
    rows, owner = _runs(begin, end - begin)
    parts["row_adapters"][rows] = adapter[owner]

    work = parts["work"]
    work[:, 1] = 0
    if block_m > 1:
        pieces = -(-(end - begin) // block_m)
        piece, owner = _runs(np.zeros_like(pieces), pieces)
        if len(piece) > sizes.items:
            raise ValueError(f"{len(piece)} work items of {block_m} rows: the step's buffer holds {sizes.items}")
        first = begin[owner] + piece * block_m
        work[: len(piece)] = np.stack((first, np.minimum(end[owner] - first, block_m), adapter[owner]), axis=1)

    counts = np.array([len(place.pages) for place in places], np.int64)
    if len(places) > sizes.adapters or counts.sum() > sizes.pages:
        raise ValueError(
            f"{len(places)} adapters of {counts.sum()} pages: the step's buffer holds {sizes.adapters} of {sizes.pages}"
        )
    parts["adapters"][: len(places), 0] = [place.layout for place in places]
    parts["adapters"][: len(places), 1] = np.cumsum(counts) - counts
    if places:
        parts["pages"][: counts.sum()] = np.concatenate([place.pages for place in places])


def _runs(first: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers `first .. first + length` of every run, one behind the other, and which run each is of."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner] + first[owner], owner


def _check(s: Slice, where: str, grain: int, max_rank: int) -> None:
    if s.a_rows != s.rank:
        raise ValueError(
            f"{where}: {s.a_rows} rows of A for rank {s.rank}: an A that is split over GPUs would need its h "
            "gathered between the kernels; give every GPU all of A: --lora-partition=replicated"
        )
    if s.rank > max_rank:
        raise ValueError(f"{where}: rank {s.rank} is above {max_rank}, the most that the step's planes have room for")
    if s.grain != grain:
        raise ValueError(f"{where}: rows begin at multiples of {s.grain} elements, the kernels read them at {grain}")


assert SLICES == (DESCRIPTION - 2) // 2
