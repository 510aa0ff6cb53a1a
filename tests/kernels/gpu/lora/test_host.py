"""A step's numbers for the device: every row is where its segment says, whatever the segments are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafleet_kernels.gpu.lora.host import AdapterPlace, Segment, StepSizes, describe, fill_step, most_items
from lorafleet_kernels.gpu.lora.step_buffer import batch_in
from lorafleet_runtime.model.lora import plan_layout
from tests.kernels.gpu.lora_kit import USUAL, shapes, weights

GRAIN, PAGE = 128, 4096


@st.composite
def steps(draw: st.DrawFn) -> tuple[int, list[Segment], list[AdapterPlace], int]:
    """(rows, segments in order with gaps and empty ones, adapters, block of rows)."""
    adapters = draw(st.integers(0, 5))
    segments: list[Segment] = []
    end = 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=8)):
        segments.append((end + gap, end + gap + length, draw(st.integers(-1, adapters - 1))))
        end += gap + length
    pages = draw(st.lists(st.lists(st.integers(0, 99), max_size=6), min_size=adapters, max_size=adapters))
    places = [AdapterPlace(draw(st.integers(0, 9)), np.array(p, np.int32)) for p in pages]
    return end + draw(st.integers(0, 3)), segments, places, draw(st.sampled_from([1, 16, 64]))


@given(steps())
@settings(max_examples=200)
def test_work_items_cover_every_adapted_row_once(
    step: tuple[int, list[Segment], list[AdapterPlace], int],
) -> None:
    rows, segments, places, block = step
    sizes = StepSizes(rows, most_items(rows, len(segments), block), len(places), sum(len(p.pages) for p in places))
    buffer = np.full(sizes.total, 12345, np.int32)  # of an earlier step

    fill_step(buffer, sizes, segments, places, block)

    batch = batch_in(torch.from_numpy(buffer), sizes, torch.zeros(0), GRAIN)
    expected = [-1] * rows
    for begin, end, adapter in segments:
        expected[begin:end] = [adapter] * (end - begin)
    assert batch.row_adapters.tolist() == expected
    covered = [-1] * rows
    for first, count, adapter in batch.work.tolist():
        assert 0 <= count <= (block if block > 1 else 0)
        assert covered[first : first + count] == [-1] * count if count else True
        covered[first : first + count] = [adapter] * count
    if block > 1:
        assert covered == expected
    for (layout, begin), place in zip(batch.adapters.tolist(), places, strict=True):
        assert layout == place.layout
        assert batch.pages[begin : begin + len(place.pages)].tolist() == place.pages.tolist()


def test_parts_of_the_buffer_begin_at_16_bytes_and_do_not_overlap() -> None:
    sizes = StepSizes(rows=5, items=3, adapters=3, pages=7)
    ends = [begin + int(np.prod(shape)) for begin, shape in sizes.places.values()]

    assert all(begin % 4 == 0 for begin, _ in sizes.places.values())
    assert all(end <= begin for end, (begin, _) in zip(ends, list(sizes.places.values())[1:], strict=False))
    assert ends[-1] <= sizes.total


@pytest.mark.parametrize(
    ("segments", "pages", "message"),
    [
        ([(0, 9, 0)], 1, "segments up to row 9 and adapter 0: the step has 8 rows and 1 adapters"),
        ([(-1, 2, 0)], 1, "segments up to row 2"),
        ([(0, 2, 1)], 1, "adapter 1: the step has 8 rows and 1 adapters"),
        ([(0, 8, 0), (0, 8, 0), (0, 8, 0)], 1, "3 work items of 16 rows: the step's buffer holds 2"),
        ([(0, 2, 0)], 3, "1 adapters of 3 pages: the step's buffer holds 1 of 2"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(segments: list[Segment], pages: int, message: str) -> None:
    sizes = StepSizes(rows=8, items=2, adapters=1, pages=2)
    place = AdapterPlace(0, np.zeros(pages, np.int32))

    with pytest.raises(ValueError, match=message):
        fill_step(np.zeros(sizes.total, np.int32), sizes, segments, [place], 16)


def test_a_description_says_where_each_projection_is_and_which_are_left_alone() -> None:
    modules = weights({"q_proj": 3, "v_proj": 5, "up_proj": 2}, USUAL, None)
    layout = plan_layout(modules, USUAL, PAGE, GRAIN)

    described = describe(layout.layers, shapes(USUAL), GRAIN, max_rank=5)

    q, v = layout.layers[1]["qkv"]
    (up,) = layout.layers[1]["gate_up"]
    assert described[1, 0].tolist() == [q.a, 8, q.b, 3, 0, 0, v.b, 5]
    assert described[1, 2].tolist() == [up.a, 2, 0, 0, up.b, 2, 0, 0]
    assert not described[:, [1, 3]].any()


def test_layouts_that_the_kernels_cannot_read_are_refused_by_name() -> None:
    layout = plan_layout(weights({"o_proj": 8}, USUAL, None), USUAL, PAGE, GRAIN)
    (o,) = layout.layers[0]["o"]

    with pytest.raises(ValueError, match="layer 0, o: rank 8 is above 7"):
        describe(layout.layers, shapes(USUAL), GRAIN, max_rank=7)
    with pytest.raises(ValueError, match="rows begin at multiples of 128 elements, the kernels read them at 64"):
        describe(layout.layers, shapes(USUAL), 64, max_rank=8)
    with pytest.raises(ValueError, match=r"4 rows of A for rank 8.*--lora-partition=replicated"):
        describe([{"o": (replace(o, a_rows=4),)}], shapes(USUAL), GRAIN, max_rank=8)
    with pytest.raises(ValueError, match="has no int32 number"):
        describe([{"o": (replace(o, b=1 << 31),)}], shapes(USUAL), GRAIN, max_rank=8)
