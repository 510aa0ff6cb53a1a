"""The list of blocks of prompts' queries."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_kernels.gpu.attention.prefill_work import most_prefill_items, prefill_work


def listed(chunks: list[tuple[int, int]], queries: int) -> np.ndarray:
    cached, counts = np.array(chunks, np.int32).reshape(-1, 2).T
    pages = -(-(cached + counts) // 16)
    rows, begins = np.cumsum(counts) - counts + 3, np.cumsum(pages) - pages
    return prefill_work(rows.astype(np.int32), counts, cached, begins.astype(np.int32), queries)


@given(
    chunks=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 3000)), max_size=12),
    queries=st.sampled_from([1, 16, 42, 128]),
)
def test_every_token_of_every_chunk_belongs_to_exactly_one_item(chunks: list[tuple[int, int]], queries: int) -> None:
    items = listed(chunks, queries)

    tokens = sum(count for _, count in chunks)
    assert len(items) <= most_prefill_items(tokens, len(chunks), queries)
    expected: dict[int, tuple[int, int]] = {}
    row, begin = 3, 0
    for cached, count in chunks:
        expected |= {row + i: (cached + i, begin) for i in range(count)}
        row += count
        begin += -(-(cached + count) // 16)
    found = {}
    for first, count, position, table in items.tolist():
        assert 1 <= count <= queries
        for i in range(count):
            assert first + i not in found
            found[first + i] = (position + i, table)
    assert found == expected


def test_the_longest_contexts_come_first() -> None:
    positions = listed([(5, 100), (500, 3), (0, 64)], 32)[:, 2]

    assert list(positions) == sorted(positions, reverse=True)
