"""Copies of the active adapters' matrices, stacked by layout, so that a CPU multiplies many in one batched product.

Only adapters of one layout are stacked: they have the same ranks, so nothing is padded. A stack keeps its slots from
step to step and grows by doubling; an adapter that joins is copied once, and takes the slot of one that has left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorafleet_kernels.reference import StackedGroup, StackedPart
from lorafleet_runtime.model.lora import GroupView

AdapterViews = tuple[Mapping[str, GroupView], ...]
Layers = tuple[dict[str, StackedGroup], ...]

WASTE_LIMIT = 2
"""A product spans at most this many times the slots it needs; beyond that they are moved together."""


@dataclass(slots=True)
class Stack:
    """Slots of one layout, by the handles in them (-1: empty). `layers[i][group]` has `a [slots, K, ΣR]` and the parts'
    `b [slots, R, O]`."""

    handles: list[int]
    layers: Layers
    bytes_each: int

    def place(self, handles: Sequence[int], views: Mapping[int, AdapterViews]) -> None:
        """Give every one of `handles` a slot, if need be one of an adapter that is not among them."""
        wanted = set(handles)
        missing = [h for h in handles if h not in self.handles]
        free = [slot for slot, handle in enumerate(self.handles) if handle not in wanted]
        for slot, handle in zip(free, missing, strict=False):
            _write(self.layers, slot, views[handle])
            self.handles[slot] = handle

    def used(self, handles: Sequence[int]) -> int:
        """How many slots a product over `handles` spans."""
        return max(self.handles.index(h) for h in handles) + 1

    def compact(self, handles: Sequence[int]) -> None:
        """Move `handles` into the first slots."""
        wanted = set(handles)
        free = [slot for slot in range(len(handles)) if self.handles[slot] not in wanted]
        far = [slot for slot in range(len(handles), len(self.handles)) if self.handles[slot] in wanted]
        for into, slot in zip(free, far, strict=True):
            for layer in self.layers:
                for group in layer.values():
                    for t in _tensors(group):
                        t[into].copy_(t[slot])
            self.handles[into], self.handles[slot] = self.handles[slot], -1


class LoraStacks:
    """One stack per layout, within a bound of bytes over all of them."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._stacks: dict[int, Stack] = {}

    @property
    def bytes(self) -> int:
        return _total(self._stacks)

    def slots_for(self, layout: int, handles: Sequence[int], views: Mapping[int, AdapterViews]) -> Stack | None:
        """A stack in which every one of `handles` has a slot, few slots of others among them; or None when that would
        exceed the bound."""
        stack = self._stacks.get(layout)
        if stack is None or len(stack.handles) < len(handles):
            stack = self._grown(layout, stack, handles, views)
        if stack is not None:
            stack.place(handles, views)
            if stack.used(handles) > WASTE_LIMIT * len(handles):
                stack.compact(handles)
        return stack

    def _grown(
        self, layout: int, old: Stack | None, handles: Sequence[int], views: Mapping[int, AdapterViews]
    ) -> Stack | None:
        like = views[handles[0]]
        each = _bytes(like)
        others = {key: s for key, s in self._stacks.items() if key != layout}
        slots = 1 << (len(handles) - 1).bit_length()
        if slots * each > self._budget:
            slots = len(handles)
        if slots * each > self._budget:
            return None
        while _total(others) + slots * each > self._budget:
            others.pop(next(iter(others)))
        layers = tuple({name: _empty(group, slots) for name, group in layer.items()} for layer in like)
        kept = old.handles if old else []
        if old:
            _copy_slots(old.layers, layers, len(kept))
        self._stacks = {**others, layout: Stack(kept + [-1] * (slots - len(kept)), layers, each)}
        return self._stacks[layout]


def _total(stacks: Mapping[int, Stack]) -> int:
    return sum(stack.bytes_each * len(stack.handles) for stack in stacks.values())


def _bytes(views: AdapterViews) -> int:
    return sum(g.a.nbytes + sum(p.b.nbytes for p in g.parts) for layer in views for g in layer.values())


def _empty(group: GroupView, slots: int) -> StackedGroup:
    def make(*shape: int) -> Tensor:
        return torch.empty(slots, *shape, dtype=group.a.dtype)

    parts = tuple(StackedPart(p.begin, p.end, make(*p.b.shape)) for p in group.parts)
    return StackedGroup(make(group.a.shape[1], group.a.shape[0]), parts)


def _tensors(group: StackedGroup) -> list[Tensor]:
    return [group.a, *(part.b for part in group.parts)]


def _copy_slots(old: Layers, new: Layers, count: int) -> None:
    for before, after in zip(old, new, strict=True):
        for name, group in before.items():
            for source, target in zip(_tensors(group), _tensors(after[name]), strict=True):
                target[:count].copy_(source)


def _write(layers: Layers, slot: int, views: AdapterViews) -> None:
    for layer, source in zip(layers, views, strict=True):
        for name, group in source.items():
            target = layer[name]
            target.a[slot].copy_(group.a.t())
            for into, part in zip(target.parts, group.parts, strict=True):
                into.b[slot].copy_(part.b)
