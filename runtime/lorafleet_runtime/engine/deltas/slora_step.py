"""The adapters of one step in S-LoRA's partition: no matrix is kept twice, and shrunk rows travel between ranks.

[S-LoRA 6]: one all-gather per column layer's group, one all-reduce per row layer, of all adapters' rows together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorafleet_runtime.engine.deltas.lora_stack import AdapterViews
from lorafleet_runtime.engine.step_plan import BASE, Segment
from lorafleet_runtime.model.collectives import Collectives
from lorafleet_runtime.model.lora import GroupView

COLUMN_GROUPS = ("qkv", "gate_up")


class SloraStep:
    """Callable as the decoder's `LoraHook`, on the parts that `parallel.shard_adapter` makes for `slora`. All ranks see
    the same segments and the same modules, so they make the same calls; adapters are multiplied one by one."""

    def __init__(
        self, segments: Sequence[Segment], views: Mapping[int, AdapterViews], collectives: Collectives
    ) -> None:
        self._collectives = collectives
        self._segments = [(s.begin, s.end, views[s.adapter]) for s in segments if s.adapter != BASE]

    @property
    def active(self) -> bool:
        return bool(self._segments)

    def __call__(self, layer: int, group: str, x: Tensor, y: Tensor) -> None:
        present = [(b, e, v[layer][group]) for b, e, v in self._segments if group in v[layer]]
        if not present:
            return
        shrunk = torch.cat([torch.mm(x[begin:end], view.a.t()).flatten() for begin, end, view in present])
        if group in COLUMN_GROUPS:
            _expand_gathered(present, self._collectives.all_gather(shrunk), y)
        else:
            _expand_summed(present, self._collectives.all_reduce(shrunk), y, self._collectives.rank)


def _expand_gathered(present: Sequence[tuple[int, int, GroupView]], gathered: Tensor, y: Tensor) -> None:
    """`gathered [ranks, Σ n·⌈R/ranks⌉]`: a rank's columns of each projection's shrunk rows; the last may be padding."""
    ranks, offset = gathered.shape[0], 0
    for begin, end, view in present:
        rows, width = end - begin, view.a.shape[0]
        shrunk = gathered[:, offset : offset + rows * width].view(ranks, rows, width)
        offset += rows * width
        first = 0
        for part in view.parts:
            rank = part.b.shape[0]
            each = -(-rank // ranks)
            whole = shrunk[:, :, first : first + each].transpose(0, 1).reshape(rows, ranks * each)
            y[begin:end, part.begin : part.end].addmm_(whole[:, :rank], part.b)
            first += each


def _expand_summed(present: Sequence[tuple[int, int, GroupView]], summed: Tensor, y: Tensor, rank: int) -> None:
    """Each rank adds its own columns to its part of the base's sum, whose all-reduce then brings them together."""
    offset = 0
    for begin, end, view in present:
        rows, width = end - begin, view.a.shape[0]
        (part,) = view.parts
        columns = part.end - part.begin
        shrunk = summed[offset : offset + rows * width].view(rows, width)
        offset += rows * width
        y[begin:end, rank * columns : (rank + 1) * columns].addmm_(shrunk, part.b)
