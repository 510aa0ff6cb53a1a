"""Who computes what part of a step's prompt attention: a block of a chunk's queries each, the longest contexts first,
so that the last program to start is a short one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PREFILL_ITEM = 4
"""Numbers of an item: first row of the batch, rows (0: nothing to do), position of the first, place in the table."""

Ints = NDArray[np.int32]


def most_prefill_items(tokens: int, chunks: int, queries: int) -> int:
    """How many items `prefill_work` may give for `tokens` in `chunks`, by blocks of `queries` tokens."""
    return tokens // queries + chunks


def prefill_work(rows: Ints, counts: Ints, positions: Ints, begins: Ints, queries: int) -> Ints:
    """`[items, PREFILL_ITEM]` for chunks of `counts [C]` tokens, at least 1 each, that begin at `rows` of the batch and
    at `positions` of their sequences, whose page ids begin at `begins` in the page table."""
    blocks = -(-counts // queries)
    chunk = np.repeat(np.arange(len(counts)), blocks)
    first = (np.arange(len(chunk)) - (np.cumsum(blocks) - blocks)[chunk]) * queries
    position = positions[chunk] + first
    items = np.stack((rows[chunk] + first, np.minimum(counts[chunk] - first, queries), position, begins[chunk]), axis=1)
    return items[np.argsort(-position, kind="stable")].astype(np.int32).reshape(-1, PREFILL_ITEM)
