"""What the tuner times: one group of one step, as the engine launches it, over adapters of noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorafleet_kernels.gpu.forms.lora import GroupShape, LoraConfig, StepShape, Variant, fused_tiles
from lorafleet_kernels.gpu.forms.weight_types import as_fp8
from lorafleet_kernels.gpu.layers import FUSED_ROWS
from lorafleet_kernels.gpu.lora.host import AdapterPlace, Segment, StepSizes, describe, fill_step, most_items
from lorafleet_kernels.gpu.lora.step import GroupForm, LoraStep, Scratch
from lorafleet_kernels.gpu.lora.step_buffer import batch_in
from lorafleet_kernels.gpu.tuning.lora.lookup import ModelShapes
from lorafleet_kernels.gpu.tuning.search import copies_past
from lorafleet_kernels.gpu.tuning.stand import Stand

NOISE = 1e-4
"""What a result may be off, of the largest value: what float32 sums lose, and what cancels."""
SCALE_BYTES = 4


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

    noise = NOISE

    def __init__(self, step: StepShape, group: GroupShape, model: ModelShapes, page: int, stand: Stand) -> None:
        """`page`: elements of a pool page, of the model's type."""
        self._step, self._grain, self._group = step, model.grain, group
        rank, width, device = step.max_rank, sum(group.widths), stand.device
        dtype: torch.dtype = getattr(torch, model.dtype)
        stored = torch.float8_e4m3fn if model.of_fp8 else dtype
        page = page * dtype.itemsize // stored.itemsize
        slices, elements = _plan(group, rank, model.grain, scales=model.of_fp8)
        pages = -(-elements // page)
        moved = step.segments * elements * stored.itemsize + step.rows * (group.k + 2 * width) * dtype.itemsize
        self.copies = copies_past(stand.cache, moved)
        order = np.random.default_rng(0).permutation(step.segments * pages).astype(np.int32)
        self._places = [AdapterPlace(0, own) for own in np.split(order, step.segments)]
        described = describe([{"o": slices}] * self.copies, {"o": group}, self._grain, rank)
        self._layouts = torch.from_numpy(described[None]).to(device)
        generator = torch.Generator(device).manual_seed(0)

        def noise(*shape: int, spread: float = 1.0) -> Tensor:
            made = torch.empty(self.copies, *shape, dtype=dtype, device=device)
            return made.normal_(std=spread, generator=generator)

        small = (group.k * rank) ** -0.25
        self._pool = noise(step.segments * pages, page, spread=1.0 if model.of_fp8 else small)
        if model.of_fp8:
            coded = self._pool.to(stored).view(torch.uint8)
            for place in self._places:
                _write_scales(coded, place, slices[0].a, rank * len(group.widths), small**2)
            self._pool = as_fp8(coded, stand.card.capability)
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


def _plan(group: GroupShape, rank: int, grain: int, scales: bool) -> tuple[Sequence[_Slice], int]:
    """Where the matrices of an adapter on all projections lie in its vector, as the runtime lays them out, and its
    length. `scales`: of e4m3, up to A."""
    ranks, a_stride = len(group.widths) * rank, -(-group.k // grain) * grain
    first = -(-SCALE_BYTES * ranks // grain) * grain if scales else 0
    b, column, slices = first + ranks * a_stride, 0, []
    for number, width in enumerate(group.widths):
        slices.append(_Slice(first + number * rank * a_stride, b, rank, rank, column, grain))
        b += rank * (-(-width // grain) * grain)
        column += width
    return slices, b


def _write_scales(pool: Tensor, place: AdapterPlace, a: int, ranks: int, size: float) -> None:
    """Powers of two near `size`, two in turn, so that another rank's shows, up to byte `a` of an adapter's vector in
    `pool [copies, P, bytes of a page]`."""
    device = pool.device
    scales = 2.0 ** (round(math.log2(size)) + torch.arange(ranks, device=device) % 2)
    at = torch.arange(a - SCALE_BYTES * ranks, a, device=device)
    pages = torch.from_numpy(place.pages).to(device).long()[at // pool.shape[2]]
    pool[:, pages, at % pool.shape[2]] = scales.float().view(torch.uint8)


def _segments(step: StepShape) -> list[Segment]:
    ends = [step.rows * (i + 1) // step.segments for i in range(step.segments)]
    return [(begin, end, i) for i, (begin, end) in enumerate(zip([0, *ends], ends, strict=False))]
