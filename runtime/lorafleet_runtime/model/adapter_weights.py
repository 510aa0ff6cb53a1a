"""What an adapter changes of its base model, as plain values in host memory, float32: ready to be packed, or sharded.

V vocabulary, H hidden size, r rank. Every scale that PEFT applies (α/r, DoRA's magnitude) is already in these tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One matrix's update, ΔW = b @ a: `a [r, in]`, `b [out, r]` float32; b already carries the scale."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, slots=True)
class VocabularyUpdate:
    """What an adapter makes of a matrix `W [V, H]`, the embedding or lm_head:

    `W' = (full or W) · scale + pair`, and then the rows of `tokens` are `rows`; lm_head adds `shift [V]` to its logits.
    `scale` is `[V]` for lm_head (a factor of rows) and `[H]` for the embedding (a factor of columns). Sharded by
    vocabulary, `full`, `pair.b`, lm_head's `scale` and `shift` are cut along V, and `tokens` with `rows` by owner.
    """

    full: Tensor | None = None
    scale: Tensor | None = None
    pair: LoraPair | None = None
    tokens: tuple[int, ...] = ()
    rows: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """An adapter of one base model. A projection gives `y · scale + shift + b (a x)`, where y is the base model's
    output with its bias; what is missing from a mapping changes nothing.

    `rank` is the largest of all ranks, 0 without any; `targets` are the modules that are changed, norms aside, in the
    order of `LORA_TARGETS`, then embed_tokens and lm_head.

    How each is cut over ranks of tensor parallelism: `modules` as their base weights; `scales [out]` and `shifts [out]`
    along `out` for column layers (q, k, v, gate, up); for row layers (o, down) scales are the same everywhere, as they
    multiply every partial sum, and shifts are added by one rank only; `norms` and `final_norm` are the same everywhere.
    """

    rank: int
    modules: Mapping[tuple[int, str], LoraPair]
    targets: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    scales: Mapping[tuple[int, str], Tensor] = field(default_factory=dict)
    shifts: Mapping[tuple[int, str], Tensor] = field(default_factory=dict)
    norms: Mapping[tuple[int, str], Tensor] = field(default_factory=dict)
    """By layer and one of `NORMS`: `[H]`, or `[head size]` for q and k."""
    final_norm: Tensor | None = None
    embedding: VocabularyUpdate | None = None
    lm_head: VocabularyUpdate | None = None
