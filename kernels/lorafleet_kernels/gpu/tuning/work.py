"""What the tuner times: one group of one step, as the engine launches it, over adapters of noise.

So many copies of inputs and weights that none is still in the L2 cache when it is its turn again, as in an engine,
whose other layers come between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lorafleet_kernels.gpu.forms.lora import GroupShape, LoraConfig, StepShape, Variant, fused_tiles
from lorafleet_kernels.gpu.layers import FUSED_ROWS
from lorafleet_kernels.gpu.lora.host import AdapterPlace, Segment, StepSizes, describe, fill_step, most_items
from lorafleet_kernels.gpu.lora.step import GroupForm, LoraStep, Scratch
from lorafleet_kernels.gpu.lora.step_buffer import batch_in

HEADROOM = 2
"""Copies fill so many L2 caches, at least."""


class Work(Protocol):
    """One group of a step in any form."""

    @property
    def copies(self) -> int: ...

    def run(self, config: LoraConfig) -> Callable[[], None]:
        """Computes every copy in that form, in order."""
        ...

    def result(self, config: LoraConfig) -> Tensor:
        """What the first copy becomes, from the same start every time."""
        ...


@dataclass(frozen=True, slots=True)
class _Slice:
    a: int
    b: int
    a_rows: int
    rank: int
    begin: int
    grain: int


def fused(step: StepShape) -> bool:
    """Whether the engine adds such a step's deltas within the kernels that follow."""
    return step.rows <= FUSED_ROWS


class GroupWork:
    """`step.segments` adapters of rank `step.max_rank` on all of a group's projections, with equally many rows each, as
    far as they go. Pages of `page` elements in no order.

    Where the engine's expand is part of the next kernel, one by rows stands in for it here: it sums the same planes by
    the same tiles, and what else that kernel does is the same in every form."""

    def __init__(
        self, step: StepShape, group: GroupShape, dtype: torch.dtype, grain: int, page: int, device: torch.device,
        cache: int,
    ) -> None:  # fmt: skip
        """`cache`: bytes of L2."""
        self._step, self._grain, self._group = step, grain, group
        rank, width = step.max_rank, sum(group.widths)
        slices, elements = _plan(group, rank, grain)
        pages = -(-elements // page)
        moved = dtype.itemsize * (step.segments * elements + step.rows * (group.k + 2 * width))
        self.copies = max(2, HEADROOM * cache // moved + 1)
        order = np.random.default_rng(0).permutation(step.segments * pages).astype(np.int32)
        self._places = [AdapterPlace(0, own) for own in np.split(order, step.segments)]
        described = describe([{"o": slices}] * self.copies, {"o": group}, grain, rank)
        self._layouts = torch.from_numpy(described[None]).to(device)
        generator = torch.Generator(device).manual_seed(0)

        def noise(*shape: int, spread: float = 1.0) -> Tensor:
            made = torch.empty(self.copies, *shape, dtype=dtype, device=device)
            return made.normal_(std=spread, generator=generator)

        self._pool = noise(step.segments * pages, page, spread=(group.k * rank) ** -0.25)
        self._x, self._y = noise(step.rows, group.k), noise(step.rows, width)
        self._start = self._y[0].clone()

    def run(self, config: LoraConfig) -> Callable[[], None]:
        call, _ = self._call(config)

        def run() -> None:
            for copy in range(self.copies):
                call(copy)

        return run

    def result(self, config: LoraConfig) -> Tensor:
        call, planes = self._call(config)
        planes.fill_(float("nan"))  # what a form leaves out must show
        self._y[0].copy_(self._start)
        call(0)
        return self._y[0].clone()

    def _call(self, config: LoraConfig) -> tuple[Callable[[int], None], Tensor]:
        """What computes one copy, and the planes that it uses."""
        step, device = self._step, self._pool.device
        forms = {"o": GroupForm(self._group, config)}
        scratch = Scratch.of(forms, step.rows, step.max_rank, device)
        m = config.shrink.m
        items = most_items(step.rows, step.segments, m) if m > 1 else 0
        sizes = StepSizes(step.rows, items, step.segments, sum(len(place.pages) for place in self._places))
        buffer = np.empty(sizes.total, np.int32)
        fill_step(buffer, sizes, _segments(step), self._places, m)
        batch = batch_in(torch.from_numpy(buffer).to(device), sizes, self._layouts, self._grain)
        lora = LoraStep(self._pool, batch, forms, scratch, step.max_rank)
        adding = lora
        if fused(step):
            tiles = fused_tiles(self._grain)
            rows = LoraConfig(Variant.ROWS, config.shrink, tiles, config.splits, config.lanes)
            adding = LoraStep(self._pool, batch, {"o": GroupForm(self._group, rows)}, scratch, step.max_rank)

        def call(copy: int) -> None:
            lora.shrink(copy, "o", self._x[copy])
            adding.expand(copy, "o", self._y[copy])

        return call, scratch.planes


def _plan(group: GroupShape, rank: int, grain: int) -> tuple[Sequence[_Slice], int]:
    """Where the matrices of an adapter on all projections lie in its vector, as the runtime lays them out, and its
    length."""
    a_stride = -(-group.k // grain) * grain
    b, column, slices = len(group.widths) * rank * a_stride, 0, []
    for number, width in enumerate(group.widths):
        slices.append(_Slice(number * rank * a_stride, b, rank, rank, column, grain))
        b += rank * (-(-width // grain) * grain)
        column += width
    return slices, b


def _segments(step: StepShape) -> list[Segment]:
    ends = [step.rows * (i + 1) // step.segments for i in range(step.segments)]
    return [(begin, end, i) for i, (begin, end) in enumerate(zip([0, *ends], ends, strict=False))]
