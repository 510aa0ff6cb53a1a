"""Which forms of the attention kernels ship: the defaults, and beside each a few that may be faster on a card that was
measured. The gate compiles all of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from lorafleet_kernels.gpu.forms.attention import (
    Capability,
    DecodeTiles,
    PrefillTiles,
    decode_tiles,
    padded,
    prefill_tiles,
)
from lorafleet_kernels.reference_fp8 import FP8

RESIDENT = (1, 2, 3, 4, 6)
"""Programs a processor, for the split of decode rows: tried with every form, as no code depends on it."""
CARDS = {(8, 0): "sm_80", (8, 6): "sm_80", (9, 0): "sm_90"}
"""One capability of each amount of shared memory, 164, 100 and 228 KB a processor, and where its forms are checked."""

# By the padded size of heads. Longer tiles ask less often for page ids; more warps hide more of what each waits for;
# more stages have more under way. What is not here spills, or has too few warps left.
_DECODE = {
    64: ("n64 w8 s5", "n32 w4 s5"),
    128: ("n64 w8 s5", "n32 w4 s7"),
    256: ("n64 w8 s5", "n32 w4 s5"),
}
_DECODE_FP8 = {64: _DECODE[64], 128: ("n64 w4 s5",), 256: ("n64 w8 s5",)}
# The same, for Hopper and for others: there queries are read from shared memory, here registers hold them.
_PREFILL = {
    64: (("m64 n64 w4 s3",), ("m64 n64 w4 s3",)),
    128: (("m128 n128 w8 s3", "m64 n64 w4 s3"), ("m64 n64 w8 s3",)),
    256: (("m64 n64 w8 s3",), ("m32 n32 w4 s3",)),
}
_PREFILL_FP8 = {
    64: (("m64 n64 w4 s3",), ("m64 n64 w4 s3",)),
    128: (("m64 n64 w4 s3",), ("m128 n32 w8 s3",)),
    256: (("m64 n64 w8 s3",), ("m64 n64 w8 s3",)),
}
_LEAST = 64


def decode_candidates(size: int, group: int, dtype: torch.dtype, capability: Capability) -> tuple[DecodeTiles, ...]:
    """Of `dtype` in the pool; the default first. Heads of no power of two, which few models have, get one more form."""
    default = decode_tiles(size, group, dtype, capability)
    texts = (_DECODE_FP8 if dtype == FP8 else _DECODE).get(max(padded(size), _LEAST), ())
    others = [DecodeTiles.parse(text, 1) for text in (texts if padded(size) == size else texts[:1])]
    every = [replace(tiles, resident=n) for tiles in (default, *others) for n in RESIDENT]
    return tuple(dict.fromkeys([default, *every]))


def prefill_candidates(
    size: int, group: int, dtype: torch.dtype, kv: torch.dtype, capability: Capability
) -> tuple[PrefillTiles, ...]:
    """Of `dtype` in the model and `kv` in the pool; the default first."""
    default = prefill_tiles(size, group, dtype, capability)
    hopper, elsewhere = (_PREFILL_FP8 if kv == FP8 else _PREFILL).get(max(padded(size), _LEAST), ((), ()))
    others = [PrefillTiles.parse(text) for text in (hopper if capability[0] == 9 else elsewhere)]
    return tuple(dict.fromkeys([default, *(replace(t, rows=max(t.rows, padded(group))) for t in others)]))


def decode_forms(size: int, group: int, dtype: torch.dtype = torch.bfloat16) -> dict[DecodeTiles, set[str]]:
    """All code that `decode_candidates` may ask for, each once, and the cards where it may."""
    forms: dict[DecodeTiles, set[str]] = {}
    for capability, card in CARDS.items():
        for tiles in decode_candidates(size, group, dtype, capability):
            forms.setdefault(replace(tiles, resident=1), set()).add(card)
    return forms


def prefill_forms(size: int, kv: torch.dtype = torch.bfloat16) -> dict[PrefillTiles, set[str]]:
    """The same of `prefill_candidates` for 16-bit models."""
    forms: dict[PrefillTiles, set[str]] = {}
    for capability, card in CARDS.items():
        for tiles in prefill_candidates(size, 1, torch.bfloat16, kv, capability):
            forms.setdefault(tiles, set()).add(card)
    return forms
