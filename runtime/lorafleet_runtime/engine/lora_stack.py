"""Copies of the active adapters' matrices, stacked by layout, so that a CPU multiplies many in one batched product.

Only adapters of one layout are stacked: they have the same ranks, so nothing is padded. A stack keeps its slots from
step to step; an adapter that joins is copied once, and takes the slot of one that has left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorafleet_kernels.reference import StackedGroup, StackedPart
from lorafleet_runtime.model.lora import GroupView

AdapterViews = tuple[Mapping[str, GroupView], ...]


@dataclass(slots=True)
class Stack:
    """Slots of one layout. `layers[i][group]` has `a [slots, K, ΣR]` and the parts' `b [slots, R, O]`."""

    handles: list[int]
    layers: tuple[dict[str, StackedGroup], ...]
    bytes: int


class LoraStacks:
    """One stack per layout, within a bound of bytes over all of them."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._stacks: dict[int, Stack] = {}

    def slots_for(self, layout: int, handles: Sequence[int], views: Mapping[int, AdapterViews]) -> Stack | None:
        """A stack in which every one of `handles` has a slot, or None when that would exceed the bound."""
        stack = self._stacks.get(layout)
        if stack is None or len(stack.handles) < len(handles) or len(stack.handles) > 2 * len(handles):
            return self._rebuild(layout, handles, views)
        missing = [h for h in handles if h not in stack.handles]
        if missing:
            wanted = set(handles)
            left = [slot for slot, handle in enumerate(stack.handles) if handle not in wanted]
            for slot, handle in zip(left, missing, strict=False):
                _write(stack, slot, handle, views[handle])
        return stack

    def _rebuild(self, layout: int, handles: Sequence[int], views: Mapping[int, AdapterViews]) -> Stack | None:
        self._stacks.pop(layout, None)
        like = views[handles[0]]
        size = len(handles) * _bytes(like)
        while self._stacks and size + sum(s.bytes for s in self._stacks.values()) > self._budget:
            self._stacks.pop(next(iter(self._stacks)))
        if size > self._budget:
            return None
        layers = tuple({name: _empty(group, len(handles)) for name, group in layer.items()} for layer in like)
        stack = Stack([-1] * len(handles), layers, size)
        for slot, handle in enumerate(handles):
            _write(stack, slot, handle, views[handle])
        self._stacks[layout] = stack
        return stack


def _bytes(views: AdapterViews) -> int:
    return sum(g.a.nbytes + sum(p.b.nbytes for p in g.parts) for layer in views for g in layer.values())


def _empty(group: GroupView, slots: int) -> StackedGroup:
    def make(*shape: int) -> Tensor:
        return torch.empty(slots, *shape, dtype=group.a.dtype)

    parts = tuple(StackedPart(p.begin, p.end, make(*p.b.shape)) for p in group.parts)
    return StackedGroup(make(group.a.shape[1], group.a.shape[0]), parts)


def _write(stack: Stack, slot: int, handle: int, views: AdapterViews) -> None:
    for layer, source in zip(stack.layers, views, strict=True):
        for name, group in source.items():
            target = layer[name]
            target.a[slot].copy_(group.a.t())
            for into, part in zip(target.parts, group.parts, strict=True):
                into.b[slot].copy_(part.b)
    stack.handles[slot] = handle
