"""Copies of the active adapters' matrices, stacked by layout, so that a CPU multiplies many in one batched product.

Only adapters of one layout are stacked: they have the same ranks, so nothing is padded. A stack keeps its slots from
step to step; an adapter that joins is copied once, and takes the slot of one that has left. Address space is reserved
for as many slots as the bound allows; memory is taken by the slots that were ever used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from lorafleet_kernels.reference import StackedGroup, StackedPart
from lorafleet_runtime.model.lora import GroupView
from lorafleet_runtime.model.on_demand import zeros_on_demand

AdapterViews = tuple[Mapping[str, GroupView], ...]
Layers = tuple[dict[str, StackedGroup], ...]

MOST_SLOTS = 4096
WASTE_LIMIT = 2
"""A product spans at most this many times the slots it needs; beyond that they are moved together."""


@dataclass(slots=True)
class Stack:
    """Slots of one layout, by the handles in them (-1: empty); `touched` of them have taken memory. `layers[i][group]`
    has `a [slots, K, ΣR]` and the parts' `b [slots, R, O]`."""

    handles: list[int]
    layers: Layers
    bytes_each: int
    touched: int = 0

    @property
    def bytes(self) -> int:
        return self.touched * self.bytes_each

    def place(self, handles: Sequence[int], views: Mapping[int, AdapterViews]) -> None:
        """Give every one of `handles` a slot, if need be one of an adapter that is not among them."""
        wanted = set(handles)
        missing = [h for h in handles if h not in self.handles]
        free = (slot for slot, handle in enumerate(self.handles) if handle not in wanted)
        for slot, handle in zip(list(islice(free, len(missing))), missing, strict=True):
            _write(self.layers, slot, views[handle])
            self.handles[slot] = handle
            self.touched = max(self.touched, slot + 1)

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
        return sum(stack.bytes for stack in self._stacks.values())

    def slots_for(self, layout: int, handles: Sequence[int], views: Mapping[int, AdapterViews]) -> Stack | None:
        """A stack in which every one of `handles` has a slot, few slots of others among them; or None when that would
        exceed the bound."""
        stack = self._stacks.pop(layout, None) or _reserve(views[handles[0]], self._budget)
        if len(stack.handles) < len(handles):
            self._stacks[layout] = stack
            return None
        stack.place(handles, views)
        if stack.used(handles) > WASTE_LIMIT * len(handles):
            stack.compact(handles)
        while self._stacks and self.bytes + stack.bytes > self._budget:
            self._stacks.pop(next(iter(self._stacks)))
        self._stacks[layout] = stack
        return stack


def _reserve(like: AdapterViews, budget: int) -> Stack:
    """A stack of as many slots as `budget` bytes hold, none of which takes memory yet."""
    matrices = [t for layer in like for group in layer.values() for t in (group.a, *(part.b for part in group.parts))]
    each = sum(t.nbytes for t in matrices)
    slots = min(budget // each, MOST_SLOTS)
    memory = zeros_on_demand((max(slots, 1) * sum(t.numel() for t in matrices),), matrices[0].dtype)
    begin = 0

    def make(*shape: int) -> Tensor:
        nonlocal begin
        size = max(slots, 1) * math.prod(shape)
        begin += size
        return memory[begin - size : begin].view(-1, *shape)

    layers = []
    for layer in like:
        groups = {}
        for name, group in layer.items():
            a = make(group.a.shape[1], group.a.shape[0])
            groups[name] = StackedGroup(a, tuple(StackedPart(p.begin, p.end, make(*p.b.shape)) for p in group.parts))
        layers.append(groups)
    return Stack([-1] * slots, tuple(layers), each)


def _tensors(group: StackedGroup) -> list[Tensor]:
    return [group.a, *(part.b for part in group.parts)]


def _write(layers: Layers, slot: int, views: AdapterViews) -> None:
    for layer, source in zip(layers, views, strict=True):
        for name, group in source.items():
            target = layer[name]
            target.a[slot].copy_(group.a.t())
            for into, part in zip(target.parts, group.parts, strict=True):
                into.b[slot].copy_(part.b)
