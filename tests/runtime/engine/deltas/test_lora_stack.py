"""A stack always holds, in the slots it names, the matrices of the adapters that were asked for."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_kernels.reference import LoraPart
from lorafleet_runtime.engine.deltas.lora_stack import WASTE_LIMIT, AdapterViews, LoraStacks
from lorafleet_runtime.model.lora import GroupView

ADAPTERS, RANK, INPUTS, OUTPUTS = 9, 2, 3, 4
EACH = 4 * (RANK * INPUTS + RANK * OUTPUTS)


def adapter_views(handle: int) -> AdapterViews:
    a = torch.full((RANK, INPUTS), float(handle))
    return ({"o": GroupView(a, (LoraPart(0, OUTPUTS, torch.full((RANK, OUTPUTS), -float(handle))),))},)


VIEWS = {handle: adapter_views(handle) for handle in range(ADAPTERS)}
actives = st.lists(st.sets(st.integers(0, ADAPTERS - 1), min_size=1).map(sorted), min_size=1, max_size=12)


@given(actives)
def test_every_active_adapter_stands_in_its_slot_and_few_others_are_spanned(steps: list[list[int]]) -> None:
    stacks = LoraStacks(1 << 20)
    for handles in steps:
        stack = stacks.slots_for(0, handles, VIEWS)
        assert stack is not None
        group = stack.layers[0]["o"]
        for handle in handles:
            slot = stack.handles.index(handle)
            assert group.a[slot].eq(handle).all()
            assert group.parts[0].b[slot].eq(-handle).all()
        assert stack.used(handles) <= WASTE_LIMIT * len(handles)


@given(actives, actives)
def test_stacks_of_all_layouts_stay_within_the_bound(first: list[list[int]], second: list[list[int]]) -> None:
    budget = 6 * EACH
    stacks = LoraStacks(budget)
    for pair in zip(first, second, strict=False):
        for layout, handles in enumerate(pair):
            stack = stacks.slots_for(layout, handles, VIEWS)
            assert (stack is None) == (len(handles) * EACH > budget)
            assert stacks.bytes <= budget


def test_an_adapter_may_leave_the_first_layer_alone() -> None:
    views: dict[int, AdapterViews] = {handle: ({}, *adapter_views(handle)) for handle in (1, 2)}
    stack = LoraStacks(1 << 20).slots_for(0, [1, 2], views)
    assert stack is not None
    assert stack.layers[1]["o"].a[1].eq(2).all()
