"""What the LoRA kernels are told of one step: which rows belong to which adapter, and where in the pool its weights
are. Device tensors of int32, written by one copy a step; every size is bounded before the step is known, so that a
captured graph reads them.

An adapter's weights lie as `lorafleet_runtime.model.lora` says: per layer one vector, group after group, in a group
first the A rows of its projections, one below the other, then the Bᵀ rows of each; the vector is cut into the adapter's
pages, whose ids are the same in every layer. Element e of it is element e mod P of page `pages[begin + e // P]`, where
P is the number of elements of a page. Rows and projections begin at multiples of the layout's grain, so a tile row of
at most `grain` elements lies within one page."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

SLICES = 3
"""Projections of the largest group: q, k and v."""
DESCRIPTION = 2 + 2 * SLICES
"""Numbers that describe one group of one layer: where A begins and ΣR, its rows; then for each projection where Bᵀ
begins, and its rank, 0 where the adapter leaves it alone."""


@dataclass(frozen=True, slots=True)
class LoraBatch:
    """`work [W, 3]`: first row, rows (0: nothing to do), and which of the step's adapters; `adapters [N, 2]`: the
    number of its layout, and where its pages begin in `pages`; `layouts [L, layers, groups, DESCRIPTION]`;
    `row_adapters [T]`: of each row, -1 for the base model. `grain`: elements, a power of two of at least 16."""

    work: Tensor
    adapters: Tensor
    pages: Tensor
    layouts: Tensor
    row_adapters: Tensor
    grain: int
