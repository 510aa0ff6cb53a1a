"""What one copy brings to the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorafleet_kernels.batch import AttentionBatch
from lorafleet_kernels.gpu.attention.plan import Bounds, Cut, DevicePlan, DoesNotFit, plan_attention

CUT = Cut(programs=4, block_pages=2, queries=8)
BATCH = AttentionBatch(
    positions=[0, 80, *range(16, 29)], counts=[1, 1, 13], pages=[[7], [3, 1, 4, 5, 9, 2], [6, 8]], decodes=2
)


def packed(batch: AttentionBatch, bounds: Bounds) -> DevicePlan:
    memory = np.full(bounds.length(CUT), 99, np.int32)
    plan_attention(batch, CUT).pack(memory, bounds, CUT)
    return DevicePlan.view(torch.from_numpy(memory), bounds, CUT)


def test_tokens_go_to_the_pages_of_their_sequences() -> None:
    plan = plan_attention(BATCH, CUT)

    assert list(plan.slots) == [7 * 16, 2 * 16, *range(8 * 16, 8 * 16 + 13)]
    assert list(plan.pages) == [7, 3, 1, 4, 5, 9, 2, 6, 8]
    assert [list(item) for item in plan.prefill_items] == [[10, 5, 24, 7], [2, 8, 16, 7]]
    assert set(plan.decode_items[:, 0]) == {0, 1}


def test_what_was_packed_is_what_the_kernels_see() -> None:
    plan, seen = plan_attention(BATCH, CUT), packed(BATCH, Bounds.of(BATCH))

    for name in ("positions", "slots", "pages", "decode_bounds"):
        assert getattr(seen, name).tolist() == getattr(plan, name).tolist()
    for name in ("decode_items", "prefill_items"):
        own = getattr(plan, name)
        assert getattr(seen, name)[: len(own)].tolist() == own.tolist()


def test_a_smaller_step_in_the_same_memory_leaves_nothing_to_do_in_the_rest() -> None:
    seen = packed(BATCH, Bounds(tokens=40, decodes=9, chunks=3, pages=50))

    assert seen.slots[15:].tolist() == [-1] * 25
    assert seen.positions[15:].tolist() == [0] * 25
    assert not seen.prefill_items[2:].any()
    assert seen.decode_bounds[-1] == len(plan_attention(BATCH, CUT).decode_items)


@pytest.mark.parametrize("decodes", [0, 9])
def test_an_empty_step_has_no_work_at_all(decodes: int) -> None:
    nothing = AttentionBatch(positions=[], counts=[], pages=[], decodes=0)

    seen = packed(nothing, Bounds(tokens=4, decodes=decodes, chunks=2, pages=8))

    assert seen.slots.tolist() == [-1] * 4
    assert not seen.decode_bounds.any()
    assert not seen.prefill_items.any()


def test_every_part_begins_where_the_compiled_code_expects_it() -> None:
    bounds = Bounds(tokens=13, decodes=3, chunks=1, pages=5)
    memory = torch.zeros(bounds.length(CUT), dtype=torch.int32)
    plan = DevicePlan.view(memory, bounds, CUT)

    parts = (plan.positions, plan.slots, plan.pages, plan.decode_items, plan.decode_bounds, plan.prefill_items)
    assert [(part.data_ptr() - memory.data_ptr()) % 128 for part in parts] == [0] * 6


@pytest.mark.parametrize(
    ("bounds", "part"),
    [
        (Bounds(tokens=14, decodes=2, chunks=1, pages=9), "positions"),
        (Bounds(tokens=15, decodes=2, chunks=1, pages=8), "pages"),
        (Bounds(tokens=15, decodes=0, chunks=1, pages=9), "decode_items"),
        (Bounds(tokens=15, decodes=2, chunks=0, pages=9), "prefill_items"),
    ],
)
def test_a_step_beyond_its_bounds_is_refused_by_name(bounds: Bounds, part: str) -> None:
    with pytest.raises(DoesNotFit, match=part):
        packed(BATCH, bounds)
