"""The cut of a step's contexts over programs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_kernels.gpu.attention.decode_work import DecodeWork, decode_work, most_items, most_slots

CONTEXTS = st.lists(st.one_of(st.integers(1, 70), st.integers(1, 20_000)), min_size=1, max_size=40)


def cut(contexts: list[int], programs: int, block_pages: int) -> DecodeWork:
    pages = -(-np.array(contexts) // 16)
    begins = np.cumsum(pages) - pages
    return decode_work(np.array(contexts, np.int32), begins.astype(np.int32), programs, block_pages)


@given(contexts=CONTEXTS, programs=st.integers(1, 70), block_pages=st.sampled_from([2, 4, 8]))
def test_every_token_of_every_row_belongs_to_exactly_one_item(
    contexts: list[int], programs: int, block_pages: int
) -> None:
    work = cut(contexts, programs, block_pages)

    begin = 0
    for row, context in enumerate(contexts):
        items = work.items[work.items[:, 0] == row]
        at = 0
        for item in items:
            assert item[1] == begin + at // 16
            assert item[2] > 0
            at += int(item[2])
            assert at == context or at % (block_pages * 16) == 0
        assert at == context
        begin += -(-context // 16)


@given(contexts=CONTEXTS, programs=st.integers(1, 70), block_pages=st.sampled_from([2, 4, 8]))
def test_no_program_has_more_than_its_part(contexts: list[int], programs: int, block_pages: int) -> None:
    work = cut(contexts, programs, block_pages)

    blocks = -(-work.items[:, 2] // (block_pages * 16))
    total = int(blocks.sum()) + len(contexts)
    most = max(2, -(-total // programs))
    assert len(work.bounds) == programs + 1
    assert work.bounds[0] == 0
    assert work.bounds[-1] == len(work.items)
    assert len(work.items) <= most_items(len(contexts), programs)
    for begin, end in zip(work.bounds[:-1], work.bounds[1:], strict=True):
        starts = int((work.items[begin:end, 4] == 0).sum())
        assert int(blocks[begin:end].sum()) + starts <= most + 2


@given(contexts=CONTEXTS, programs=st.integers(1, 70))
def test_pieces_of_cut_rows_have_slots_of_their_own(contexts: list[int], programs: int) -> None:
    work = cut(contexts, programs, 2)

    _, _, _, slot, piece, pieces = work.items.T
    cut_rows = pieces > 1
    assert not slot[~cut_rows].any()
    assert sorted(slot[cut_rows] + piece[cut_rows]) == list(range(int(cut_rows.sum())))
    assert int(cut_rows.sum()) <= most_slots(programs)
    for row in range(len(contexts)):
        own = work.items[:, 0] == row
        assert list(piece[own]) == list(range(int(own.sum())))
        assert set(pieces[own]) == {int(own.sum())}


@pytest.mark.parametrize("contexts", [[10_000], [10_000, *[20] * 500], [1000] * 33, [1000] * 40])
def test_long_contexts_and_many_short_ones_fill_the_card_alike(contexts: list[int]) -> None:
    work = cut(contexts, 33, 4)

    blocks = -(-work.items[:, 2] // 64)
    parts = list(zip(work.bounds[:-1], work.bounds[1:], strict=True))
    costs = np.array([int(blocks[begin:end].sum()) + int(end - begin) for begin, end in parts])
    assert costs.max() < 1.35 * costs.mean()
    assert costs.min() > 0


def test_a_step_without_decode_rows_has_no_work() -> None:
    work = cut([], 5, 2)

    assert len(work.items) == 0
    assert list(work.bounds) == [0] * 6
