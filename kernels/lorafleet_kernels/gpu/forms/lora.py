"""Which form of the LoRA kernels a step gets: a pure function of its sizes, before any measurement.

Few sizes of tiles, all listed here, so that every form is compiled and checked without a GPU. None depends on a rank or
on how many adapters there are: a rank that a tile is larger than is masked, one that is larger is looped over. The
numbers start from those that SGLang's tuner found on sm_90 (engine_kernels 1.2); an autotuner may replace them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import product

TYPES = ("bf16", "fp16")
"""Of weights and activations."""
TILE_GRAIN = 128
"""The least grain of the usual tiles; a model of less has the widest of these that fits:"""
NARROW = (16, 64)
ROWS_OF_A_TILE = 4
"""From so many tokens of an adapter on, tiles beat rows: below, a tile of 16 is mostly padding."""
PROGRAMS_PER_SM = 2
MOST_SPLITS = 16
_M, _RANKS = (16, 64, 128), (16, 32, 64)
LEAST_TILE = _M[0]
"""Rows of the smallest tile: with it a step has the most work items."""
_MOST_RANKS = {16: 32, 64: 16, 128: 16}
_TILES = re.compile(r"(\d{1,4})x(\d{1,4})x(\d{1,4}) w(\d{1,2}) s(\d{1,2})")


class Variant(StrEnum):
    """`ROWS`: a program takes one row; `TILES`: rows of one adapter, on tensor cores."""

    ROWS = "rows"
    TILES = "tiles"


@dataclass(frozen=True, slots=True)
class Tiles:
    """One form. A program computes `m` rows (1 in the row variant) by `n` columns (of shrink: ranks), `k` inputs (of
    expand: ranks) at a time; k of shrink and n of expand are at most the layout's grain."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k} w{self.warps} s{self.stages}"

    @classmethod
    def parse(cls, text: str) -> Tiles:
        """What `str` wrote. Raises ValueError."""
        found = _TILES.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is no form: write it as 16x32x128 w8 s5")
        return cls(*map(int, found.groups()))


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The forms of one group's two kernels; `splits` of K, and `lanes`: programs that share the blocks of ranks."""

    variant: Variant
    shrink: Tiles
    expand: Tiles
    splits: int
    lanes: int


@dataclass(frozen=True, slots=True)
class StepShape:
    """What is known of a step when its form is chosen: T rows, in how many segments of one adapter each (at least 1),
    and the largest rank of an adapter that may come."""

    rows: int
    segments: int
    max_rank: int


@dataclass(frozen=True, slots=True)
class GroupShape:
    """A fused linear layer: K inputs, and the columns of each of its projections."""

    k: int
    widths: tuple[int, ...]


def variant_for(rows: int, segments: int) -> Variant:
    """By tokens per segment: the products of fewer than `ROWS_OF_A_TILE` rows are not worth a tile."""
    return Variant.TILES if rows >= ROWS_OF_A_TILE * max(segments, 1) else Variant.ROWS


def block_m(rows: int, segments: int, grain: int) -> int:
    """Rows of a work item, at most: the least tile that holds a mean segment, or the largest; of a model of a small
    grain, which has narrow tiles only, the smallest. All groups of a step have the same."""
    if variant_for(rows, segments) is Variant.ROWS:
        return 1
    mean = -(-rows // max(segments, 1))
    return next((m for m in _M if m >= mean), _M[-1]) if grain >= TILE_GRAIN else _M[0]


def choose(step: StepShape, group: GroupShape, grain: int, processors: int) -> LoraConfig:
    """The default form on a card of so many processors (SMs): K is split until there are programs for all of them."""
    variant = variant_for(step.rows, step.segments)
    m = block_m(step.rows, step.segments, grain)
    ranks = _at_least(step.max_rank * len(group.widths))
    if grain < TILE_GRAIN:
        shrink, expand = _narrow_shrink(m, grain), _narrow_expand(m, grain)
    elif variant is Variant.TILES:
        shrink, expand = _shrink(m, ranks), _expand(m, _at_least(step.max_rank))
    else:
        shrink, expand = _row_shrink(), _row_expand()
    lanes = max(min(-(-step.max_rank * len(group.widths) // shrink.n), 4), 1)
    items = max(step.segments, -(-step.rows // m))
    wanted = -(-PROGRAMS_PER_SM * processors // (items * lanes))
    splits = min(_power_of_two(wanted), MOST_SPLITS, max(-(-group.k // shrink.k), 1))
    return LoraConfig(variant, shrink, expand, splits, lanes)


def tile_shrinks() -> list[Tiles]:
    """All forms of shrink by tiles that `choose` may give; the gate compiles them."""
    return [_shrink(m, n) for m, n in product(_M, _RANKS)] + [_narrow_shrink(_M[0], g) for g in NARROW]


def tile_expands() -> list[Tiles]:
    """The same, of expand by tiles."""
    usual = [_expand(m, k) for m, k in product(_M, _RANKS) if k <= _MOST_RANKS[m]]
    return usual + [_narrow_expand(_M[0], g) for g in NARROW]


def row_shrinks() -> list[Tiles]:
    """The same, of shrink by rows."""
    return [_row_shrink(), *(_narrow_shrink(1, g) for g in NARROW)]


def row_expands() -> list[Tiles]:
    """The same, of expand by rows."""
    return [_row_expand(), *(_narrow_expand(1, g) for g in NARROW)]


def over_fp8(expand: Tiles) -> Tiles:
    """The form of an expand by rows whose weights have one byte: a thread reads twice as many of them, so half of the
    threads have as much to do, and none runs out of registers."""
    return replace(expand, warps=2)


def fused_tiles(grain: int) -> Tiles:
    """Of an expand within another kernel, which is by rows."""
    return _row_expand() if grain >= TILE_GRAIN else _narrow_expand(1, grain)


def _shrink(m: int, n: int) -> Tiles:
    # Loads of weights wait for a page's id, and Triton spends two stages on that: five keep two tiles under way.
    return Tiles(m, n, 128 if m == 16 else 64, 8 if m * n >= 2048 else 4, 5)


def _expand(m: int, k: int) -> Tiles:
    # More ranks at a time, and 128 rows of them do not fit into registers.
    return Tiles(m, 128, min(k, _MOST_RANKS[m]), 4 if m == 16 else 8, 2)


def _row_shrink() -> Tiles:
    return Tiles(1, 16, 128, 4, 5)


def _row_expand() -> Tiles:
    return Tiles(1, 128, 16, 4, 2)


def _narrow_shrink(m: int, grain: int) -> Tiles:
    return Tiles(m, 16, _narrow(grain), 4, 3)


def _narrow_expand(m: int, grain: int) -> Tiles:
    return Tiles(m, _narrow(grain), 16, 4, 2)


def _narrow(grain: int) -> int:
    return max(width for width in NARROW if width <= grain)


def _at_least(ranks: int) -> int:
    return next((n for n in _RANKS if n >= ranks), _RANKS[-1])


def _power_of_two(number: int) -> int:
    """The least that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()
