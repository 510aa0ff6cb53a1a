"""Which tiles the attention kernels use: a pure choice by head size, group, element type and card. Defaults for any
card; what was measured on one may take their place (`attention_candidates` lists what ships)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch

from lorafleet_kernels.reference_fp8 import FP8

PAGE_TOKENS = 16
GROUP_TILE = 16
"""Rows of the smallest tile of the tensor cores: fewer query heads a key-value head are padded to it."""
SHIPPED_SIZES = (64, 80, 96, 128, 256)
"""Head sizes whose forms are compiled and checked; others work and are compiled when first met."""
_DECODE = re.compile(r"n(\d{1,4}) w(\d{1,2}) s(\d{1,2})")
_PREFILL = re.compile(r"m(\d{1,4}) n(\d{1,4}) w(\d{1,2}) s(\d{1,2})")

Capability = tuple[int, int]


@dataclass(frozen=True, slots=True)
class DecodeTiles:
    """`tokens` of the context at a time; `resident`: programs that one processor holds at once, for the split."""

    tokens: int
    warps: int
    stages: int
    resident: int

    def __str__(self) -> str:
        return f"n{self.tokens} w{self.warps} s{self.stages}"

    @classmethod
    def parse(cls, text: str, resident: int) -> DecodeTiles:
        """What `str` wrote. Raises ValueError."""
        if (found := _DECODE.fullmatch(text)) is None:
            raise ValueError(f"{text!r} is no form of decode attention: write it as n32 w4 s5")
        tokens, warps, stages = map(int, found.groups())
        return cls(tokens, warps, stages, resident)

    @property
    def pages(self) -> int:
        return self.tokens // PAGE_TOKENS


@dataclass(frozen=True, slots=True)
class PrefillTiles:
    """`rows`: of queries, tokens × the heads of a group; `tokens` of the context at a time."""

    rows: int
    tokens: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"m{self.rows} n{self.tokens} w{self.warps} s{self.stages}"

    @classmethod
    def parse(cls, text: str) -> PrefillTiles:
        """What `str` wrote. Raises ValueError."""
        if (found := _PREFILL.fullmatch(text)) is None:
            raise ValueError(f"{text!r} is no form of prompts' attention: write it as m128 n64 w8 s3")
        return cls(*map(int, found.groups()))

    def queries(self, group: int) -> int:
        """Tokens of a chunk that one program takes."""
        return self.rows // group


def padded(size: int) -> int:
    """The power of two that a tile's side of `size` takes."""
    return 1 << (size - 1).bit_length()


def group_tile(group: int) -> int:
    """Rows of the tile that holds the query heads of one key-value head."""
    return max(GROUP_TILE, padded(group))


def half_tile(size: int) -> int:
    """Words of two features (`kernels.fp8_pairs`) that a tile's side takes; the tensor cores want 16."""
    return max(16, padded(size) // 2)


def decode_tiles(size: int, group: int, dtype: torch.dtype, capability: Capability) -> DecodeTiles:
    """Of `dtype` in the pool. Bound by memory: at least two pages at a time, the next in flight, several programs a
    processor to hide what each waits for. Page ids take two of the five stages, so two pairs of keys and values are in
    shared memory."""
    width = padded(size) * dtype.itemsize
    wide_group = group_tile(group) > GROUP_TILE
    if dtype == FP8:
        return _fp8_decode_tiles(width, wide_group, capability)
    if width <= 128:
        return DecodeTiles(64, 4, 5, resident=2 if has_little(capability) or wide_group else 4)
    if width <= 256:
        return DecodeTiles(32, 4, 5, resident=2 if has_little(capability) or wide_group else 4)
    return DecodeTiles(32, 8, 5 if width <= 512 else 2, resident=1)


def _fp8_decode_tiles(width: int, wide_group: bool, capability: Capability) -> DecodeTiles:
    """Sums and keys take as many registers as those of 16 bits, so tiles are no longer; where a processor has room,
    more of them are in flight."""
    resident = 2 if has_little(capability) or wide_group else 4
    if width <= 64:
        return DecodeTiles(32 if wide_group else 64, 4, 5, resident)
    return DecodeTiles(32, 4, 7, resident) if width <= 128 else DecodeTiles(32, 8, 5, resident=1)


def prefill_tiles(size: int, group: int, dtype: torch.dtype, capability: Capability) -> PrefillTiles:
    """`dtype`: the model's, whatever the pool's. Bound by the tensor cores: as many rows as the registers hold beside a
    tile of scores. Hopper reads queries from shared memory, others from registers, which are then too few for large
    tiles."""
    width = padded(size) * dtype.itemsize
    if width <= 128 or (width <= 256 and capability[0] == 9):
        tiles = PrefillTiles(128, 64, 8, 3)
    elif width <= 256:
        tiles = PrefillTiles(64, 32, 4, 3)
    else:
        tiles = PrefillTiles(64, 32, 8, 3 if width <= 512 else 2)
    return replace(tiles, rows=max(tiles.rows, padded(group)))


def has_little(capability: Capability) -> bool:
    """Whether a processor has 100 KB of shared memory only: Ampere and later cards that are not for data centres."""
    return capability in ((8, 6), (8, 9), (12, 0), (12, 1))
