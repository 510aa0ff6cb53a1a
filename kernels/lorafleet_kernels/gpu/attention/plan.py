"""What the attention kernels are told of one step: built on the host in numpy, laid out for one copy to the device.

Sizes are bounded before a step is known: the kernels of a captured graph read the same places in every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lorafleet_kernels.batch import AttentionBatch
from lorafleet_kernels.gpu.attention.decode_work import ITEM, decode_work, most_items
from lorafleet_kernels.gpu.attention.prefill_work import PREFILL_ITEM, most_prefill_items, prefill_work
from lorafleet_kernels.gpu.forms.attention import PAGE_TOKENS

ALIGNMENT = 32
"""Of every part, in int32: Triton makes other code for pointers that are no multiples of 16 bytes."""

Ints = NDArray[np.int32]


class DoesNotFit(ValueError):
    """A step is larger than the bounds of the memory, or of the graph, that it was to go to."""


@dataclass(frozen=True, slots=True)
class Cut:
    """How a step is cut for one card and model: `programs` per key-value head share the decode rows, in blocks of
    `block_pages` pages; one program takes `queries` tokens of a chunk."""

    programs: int
    block_pages: int
    queries: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that a step may have: tokens, decode rows, chunks, and page ids over all sequences."""

    tokens: int
    decodes: int
    chunks: int
    pages: int

    @classmethod
    def of(cls, batch: AttentionBatch) -> Bounds:
        """The bounds that fit this step alone."""
        chunks = len(batch.counts) - batch.decodes
        return cls(len(batch.positions), batch.decodes, chunks, sum(len(pages) for pages in batch.pages))

    def sizes(self, cut: Cut) -> dict[str, tuple[int, ...]]:
        """The shapes of the parts of `AttentionPlan`."""
        prompts = most_prefill_items(self.tokens, self.chunks, cut.queries) if self.chunks else 0
        return {
            "positions": (self.tokens,),
            "slots": (self.tokens,),
            "pages": (self.pages,),
            "decode_items": (most_items(self.decodes, cut.programs) if self.decodes else 0, ITEM),
            "decode_bounds": (cut.programs + 1 if self.decodes else 0,),
            "prefill_items": (prompts, PREFILL_ITEM),
        }

    def length(self, cut: Cut) -> int:
        """int32 numbers that a step takes in all."""
        return sum(_aligned(int(np.prod(shape))) for shape in self.sizes(cut).values())


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """`positions, slots [T]`: of each token, and where its key goes: page · 16 + offset; `pages [N]`: page ids of all
    sequences, one after the other; the items of `decode_work` and `prefill_work`."""

    positions: Ints
    slots: Ints
    pages: Ints
    decode_items: Ints
    decode_bounds: Ints
    prefill_items: Ints

    def pack(self, memory: Ints, bounds: Bounds, cut: Cut) -> None:
        """Write everything to `memory [bounds.length(cut)]`, and that there is no more of it: rows without a slot,
        programs without items. Raises DoesNotFit."""
        for name, part, place in _places(memory, bounds, cut):
            own: Ints = getattr(self, name).reshape(-1)
            if name == "decode_bounds" and not self.decode_items.size:
                own = np.zeros(part, np.int32)
            if own.size > part:
                raise DoesNotFit(f"{name} of this step take {own.size} numbers, of {part}: raise the bounds {bounds}")
            place[: own.size] = own
            if name == "slots":
                place[own.size :] = -1
            elif name in ("positions", "prefill_items"):
                place[own.size :] = 0


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """The parts of an `AttentionPlan` in a device's memory, as long as the bounds; what the kernels read."""

    positions: Tensor
    slots: Tensor
    pages: Tensor
    decode_items: Tensor
    decode_bounds: Tensor
    prefill_items: Tensor

    @classmethod
    def view(cls, memory: Tensor, bounds: Bounds, cut: Cut) -> DevicePlan:
        """Of `memory [≥ bounds.length(cut)]` int32, which `pack` filled on the host; no copy."""
        shapes = bounds.sizes(cut)
        parts = {}
        begin = 0
        for field in fields(cls):
            size = int(np.prod(shapes[field.name]))
            parts[field.name] = memory[begin : begin + size].view(shapes[field.name])
            begin += _aligned(size)
        return cls(**parts)


def plan_attention(batch: AttentionBatch, cut: Cut) -> AttentionPlan:
    """Pure: the same batch and cut give the same plan."""
    counts = _ints(batch.counts)
    positions = _ints(batch.positions)
    lengths = np.fromiter(map(len, batch.pages), np.int32, len(batch.pages))
    begins = np.cumsum(lengths, dtype=np.int32) - lengths
    pages = np.concatenate([_ints(own) for own in batch.pages]) if len(batch.pages) else np.zeros(0, np.int32)
    place = np.repeat(begins, counts) + positions // PAGE_TOKENS
    slots = pages[place] * PAGE_TOKENS + positions % PAGE_TOKENS
    rows = np.cumsum(counts, dtype=np.int32) - counts
    decodes = batch.decodes
    work = decode_work(positions[:decodes] + 1, begins[:decodes], cut.programs, cut.block_pages)
    first = positions[rows[decodes:]]
    prompts = prefill_work(rows[decodes:], counts[decodes:], first, begins[decodes:], cut.queries)
    return AttentionPlan(positions, slots, pages, work.items, work.bounds, prompts)


def _places(memory: Ints, bounds: Bounds, cut: Cut) -> Iterator[tuple[str, int, Ints]]:
    begin = 0
    for name, shape in bounds.sizes(cut).items():
        size = int(np.prod(shape))
        yield name, size, memory[begin : begin + size]
        begin += _aligned(size)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _ints(values: Sequence[int]) -> Ints:
    return np.asarray(values, dtype=np.int32)
