"""Which tiles the attention kernels use: a pure choice by head size, group, element type and card. Defaults for any
card; what was measured on one may take their place."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PAGE_TOKENS = 16
GROUP_TILE = 16
"""Rows of the smallest tile of the tensor cores: fewer query heads a key-value head are padded to it."""
SHIPPED_SIZES = (64, 80, 96, 128, 256)
"""Head sizes whose forms are compiled and checked; others work and are compiled when first met."""
CAPABILITIES = ((8, 0), (8, 6), (9, 0))
"""One card of each amount of shared memory: 164, 100 and 228 KB a processor."""

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

    def queries(self, group: int) -> int:
        """Tokens of a chunk that one program takes."""
        return self.rows // group


def padded(size: int) -> int:
    """The power of two that a tile's side of `size` takes."""
    return 1 << (size - 1).bit_length()


def group_tile(group: int) -> int:
    return max(GROUP_TILE, padded(group))


def decode_tiles(size: int, group: int, dtype: torch.dtype, capability: Capability) -> DecodeTiles:
    """Bound by memory: enough tokens in flight per processor, at least two pages at a time."""
    width = padded(size) * dtype.itemsize
    tokens = 64 if width <= 256 else 32
    small = capability[0] == 8 and capability[1] != 0
    stages = 2 if small or width > 512 else 3
    resident = 1 if small or group_tile(group) > 2 * GROUP_TILE else 2
    return DecodeTiles(tokens, 4, stages, resident)


def prefill_tiles(size: int, group: int, dtype: torch.dtype, capability: Capability) -> PrefillTiles:
    """Bound by the tensor cores: as many rows as the registers hold beside a tile of scores."""
    width = padded(size) * dtype.itemsize
    small = capability[0] == 8 and capability[1] != 0
    if width <= 256:
        rows, tokens, warps, stages = 128, 64, 8, 2 if small else 3
    else:
        rows, tokens, warps, stages = 64, 32, 4, 2
    return PrefillTiles(max(rows, padded(group)), tokens, warps, stages)


def decode_forms(size: int, group: int) -> list[DecodeTiles]:
    """All that `decode_tiles` may choose for 16-bit elements, each once."""
    forms = [decode_tiles(size, group, torch.bfloat16, capability) for capability in CAPABILITIES]
    return list({str(tiles): tiles for tiles in forms}.values())


def prefill_forms(size: int) -> list[PrefillTiles]:
    forms = [prefill_tiles(size, 1, torch.bfloat16, capability) for capability in CAPABILITIES]
    return list(dict.fromkeys(forms))
