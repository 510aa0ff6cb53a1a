"""The adapters of one step: which slices of the batch get which deltas, decided once and applied at every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from lorafleet_kernels import reference as ops
from lorafleet_runtime.engine.deltas.lora_stack import AdapterViews, LoraStacks, Stack
from lorafleet_runtime.engine.step_plan import BASE, Segment

PADDING_LIMIT = 2
"""A batched product may compute at most this many times the rows it needs; larger segments are multiplied alone."""


class LoraStep:
    """Callable as the decoder's `LoraHook`. Base rows cost nothing: they are in no segment here.

    Decode rows of adapters with one layout are multiplied together, from their stack; prompts' segments are long enough
    to be multiplied one by one, straight from the pool.
    """

    def __init__(
        self, segments: Sequence[Segment], decode_rows: int, views: Mapping[int, AdapterViews],
        layouts: Mapping[int, int], stacks: LoraStacks,
    ) -> None:  # fmt: skip
        """`views` and `layouts` by the adapters' handles."""
        self._alone: list[tuple[int, int, AdapterViews]] = []
        self._together: list[tuple[Stack, ops.StackedRows]] = []
        adapted = [s for s in segments if s.adapter != BASE]
        decodes = [s for s in adapted if s.end <= decode_rows]
        alone = [s for s in adapted if s.end > decode_rows]
        for layout, of_layout in groupby(decodes, key=lambda s: layouts[s.adapter]):
            stackable, too_large = split_evenly(list(of_layout))
            alone += too_large
            if len(stackable) < 2:
                alone += stackable
                continue
            handles = [s.adapter for s in stackable]
            stack = stacks.slots_for(layout, handles, views)
            if stack is None:
                alone += stackable
            else:
                self._together.append((stack, stacked_rows(stackable, handles, stack)))
        self._alone = [(s.begin, s.end, views[s.adapter]) for s in alone]

    @property
    def active(self) -> bool:
        return bool(self._alone or self._together)

    def __call__(self, layer: int, group: str, x: Tensor, y: Tensor) -> None:
        for stack, rows in self._together:
            stacked = stack.layers[layer].get(group)
            if stacked is not None:
                ops.lora_stacked(y, x, stacked, rows)
        for begin, end, layers in self._alone:
            view = layers[layer].get(group)
            if view is not None:
                ops.lora_segment(y[begin:end], x[begin:end], view.a, view.parts)


def split_evenly(segments: list[Segment]) -> tuple[list[Segment], list[Segment]]:
    """(stackable, too large): the longest segments are set aside until padding to the longest rest is within bounds."""
    by_length = sorted(segments, key=lambda s: s.end - s.begin)
    too_large: list[Segment] = []
    while by_length:
        longest = by_length[-1].end - by_length[-1].begin
        rows = sum(s.end - s.begin for s in by_length)
        if longest * len(by_length) <= PADDING_LIMIT * rows:
            break
        too_large.append(by_length.pop())
    return sorted(by_length, key=lambda s: s.begin), too_large


def stacked_rows(segments: Sequence[Segment], handles: Sequence[int], stack: Stack) -> ops.StackedRows:
    """Which row of the batch stands where in the padded `[slots, width]` arrangement, and the way back."""
    width = max(s.end - s.begin for s in segments)
    slots = stack.used(handles)
    gather = [segments[0].begin] * (slots * width)
    rows: list[int] = []
    back: list[int] = []
    for segment, handle in zip(segments, handles, strict=True):
        first = stack.handles.index(handle) * width
        for offset, row in enumerate(range(segment.begin, segment.end)):
            gather[first + offset] = row
            rows.append(row)
            back.append(first + offset)
    adjacent = rows[-1] - rows[0] + 1 == len(rows)
    return ops.StackedRows(
        slots=slots,
        gather=torch.tensor(gather),
        back=torch.tensor(back),
        begin=rows[0],
        end=rows[-1] + 1,
        scattered=None if adjacent else torch.tensor(rows),
    )
