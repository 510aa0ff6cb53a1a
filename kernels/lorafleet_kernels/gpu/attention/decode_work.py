"""Who computes what part of a step's decode attention: the rows' contexts, one after the other, cut into equal parts.

As Stream-K does with a product's inner dimension (Osama et al. 2023, section 4): few long contexts and many short ones
both fill the card, and the grid depends on the card alone, so that a captured graph fits every step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorafleet_kernels.gpu.forms.attention import PAGE_TOKENS

ITEM = 6
"""Numbers of an item: row, first place in the page table, tokens, first slot of the row, piece, pieces of the row."""
LEAST_BLOCKS = 2
"""No program gets less than this while others could stay without work: sums of pieces cost traffic too."""

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """`items [I, ITEM]`, by row; `bounds [programs + 1]`: program p has the items `bounds[p] .. bounds[p + 1]`.
    Rows of one piece have slot 0 and leave no sums; the others' pieces have the slots from 0 on, without a gap."""

    items: Ints
    bounds: Ints


def most_items(rows: int, programs: int) -> int:
    """How many items `decode_work` may give: every cut adds one."""
    return rows + programs - 1


def most_slots(programs: int) -> int:
    """How many pieces of cut rows there may be: a cut has two sides."""
    return 2 * (programs - 1)


def decode_work(contexts: Ints, begins: Ints, programs: int, block_pages: int) -> DecodeWork:
    """Cut `contexts [B]` (tokens, at least 1 each) for `programs`, at multiples of `block_pages` pages of a row, whose
    page ids begin at `begins [B]` in the page table.

    A block and the start of a row cost one each; no program costs more than ⌈total / programs⌉ + 1."""
    if not contexts.size:
        return DecodeWork(np.zeros((0, ITEM), np.int32), np.zeros(programs + 1, np.int32))
    block = block_pages * PAGE_TOKENS
    blocks = -(-contexts // block)
    ends = np.cumsum(blocks)
    starts = ends - blocks
    costs = starts + np.arange(len(blocks))
    total = int(ends[-1]) + len(blocks)
    busy = min(programs, max(1, total // LEAST_BLOCKS))
    at = np.arange(1, busy, dtype=np.int64) * total // busy
    row = np.searchsorted(costs, at, side="right") - 1
    # A row costs one before its first block: a cut there is a cut at the row's start.
    cuts = starts[row] + np.maximum(at - costs[row] - 1, 0)

    pieces = np.union1d(starts, cuts)
    row = np.searchsorted(starts, pieces, side="right") - 1
    first = pieces - starts[row]
    last = np.append(pieces[1:], ends[-1]) - starts[row]
    counts = np.bincount(row, minlength=len(blocks))
    firsts = np.cumsum(counts) - counts
    slots = np.where(counts > 1, counts, 0)
    slots = np.where(counts > 1, np.cumsum(slots) - slots, 0)
    items = np.stack(
        (
            row,
            begins[row] + first * block_pages,
            np.minimum(last * block, contexts[row]) - first * block,
            slots[row],
            np.arange(len(pieces)) - firsts[row],
            counts[row],
        ),
        axis=1,
    )
    program = np.searchsorted(cuts, pieces, side="right")
    bounds = np.searchsorted(program, np.arange(programs + 1), side="left")
    return DecodeWork(items.astype(np.int32), bounds.astype(np.int32))
