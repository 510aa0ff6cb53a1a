"""How those parts of an adapter that are no LoRA pair of a projection lie in its pages, and how they are found there.

Vectors of a layer (DoRA's scales, shifts, norms) follow the layer's matrices. A matrix over the vocabulary belongs to
no layer: its rows are dealt out to the layers in equal blocks, all at one offset behind the longest layer's own parts,
so that the one list of page ids holds it too and the pages say what it costs.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lorafleet_runtime.model.adapter_weights import AdapterWeights, VocabularyUpdate
from lorafleet_runtime.model.config import GROUPS, DecoderConfig

SCALE, SHIFT, NORM = "scale.", "shift.", "norm."
"""Prefixes of a layer's vectors: the first two before a group's name, the third before a norm's."""
EMBEDDING, LM_HEAD, FINAL_NORM = "embedding.", "lm_head.", "final_norm"
"""Prefixes of vocabulary parts, before the names of `VocabularyUpdate`'s tensors; the last norm is one of them."""


@dataclass(frozen=True, slots=True)
class Vector:
    """Elements `begin .. begin + length` of one layer's vector."""

    begin: int
    length: int


@dataclass(frozen=True, slots=True)
class Spread:
    """A matrix `[count, width]`: every layer's vector has `rows` of its rows from element `begin` on, in layer order;
    the last layers may have padding."""

    begin: int
    rows: int
    width: int
    count: int


@dataclass(frozen=True, slots=True)
class ExtrasLayout:
    """Vectors by layer and name, vocabulary parts by name, and the token ids of the parts `rows`, in order."""

    layers: tuple[Mapping[str, Vector], ...]
    spreads: Mapping[str, Spread]
    tokens: Mapping[str, tuple[int, ...]]
    end: int

    @property
    def identity(self) -> Hashable:
        """Equal for equal layouts."""
        vectors = tuple(tuple(places.items()) for places in self.layers)
        return vectors, tuple(self.spreads.items()), tuple(self.tokens.items())


def plan_extras(weights: AdapterWeights, config: DecoderConfig, begins: Sequence[int]) -> ExtrasLayout | None:
    """Where the parts lie, given where each layer's matrices end; None for plain LoRA."""
    layers: list[Mapping[str, Vector]] = []
    end = 0
    for layer, begin in enumerate(begins):
        places: dict[str, Vector] = {}
        for name, vector in _vectors(weights, config, layer).items():
            places[name] = Vector(begin, len(vector))
            begin += len(vector)
        layers.append(places)
        end = max(end, begin)
    spreads: dict[str, Spread] = {}
    for name, matrix in _matrices(weights).items():
        count, width = matrix.shape
        rows = -(-count // config.num_layers)
        spreads[name] = Spread(end, rows, width, count)
        end += rows * width
    if not spreads and not any(layers):
        return None
    tokens = {
        prefix: update.tokens
        for prefix, update in ((EMBEDDING, weights.embedding), (LM_HEAD, weights.lm_head))
        if update is not None and update.tokens
    }
    return ExtrasLayout(tuple(layers), spreads, tokens, end)


def pack_extras(vectors: Tensor, layout: ExtrasLayout, weights: AdapterWeights, config: DecoderConfig) -> None:
    """Write the parts into `vectors [layers, elements]`, in place."""
    for layer, places in enumerate(layout.layers):
        parts = _vectors(weights, config, layer)
        for name, place in places.items():
            vectors[layer, place.begin : place.begin + place.length] = parts[name].to(vectors.dtype)
    matrices = _matrices(weights)
    for name, spread in layout.spreads.items():
        for layer in range(-(-spread.count // spread.rows)):
            block = matrices[name][layer * spread.rows : (layer + 1) * spread.rows]
            vectors[layer, spread.begin : spread.begin + block.numel()] = block.to(vectors.dtype).reshape(-1)


def _vectors(weights: AdapterWeights, config: DecoderConfig, layer: int) -> dict[str, Tensor]:
    """One layer's vectors. A group's has the width of all its projections: factors of 1 and shifts of 0 where one of
    them has none, so that one operation serves the fused output."""
    found: dict[str, Tensor] = {}
    for group, targets in GROUPS.items():
        for prefix, parts, neutral in ((SCALE, weights.scales, 1.0), (SHIFT, weights.shifts, 0.0)):
            if any((layer, t) in parts for t in targets):
                pieces = [parts.get((layer, t), torch.full((config.linear_shape(t)[0],), neutral)) for t in targets]
                found[prefix + group] = torch.cat(pieces)
    for (of, norm), weight in weights.norms.items():
        if of == layer:
            found[NORM + norm] = weight
    return found


def _matrices(weights: AdapterWeights) -> dict[str, Tensor]:
    """Vocabulary parts as `[count, width]`, the long side first; vectors are one element wide."""
    found: dict[str, Tensor] = {}
    for prefix, update in ((EMBEDDING, weights.embedding), (LM_HEAD, weights.lm_head)):
        if update is not None:
            found |= {prefix + name: matrix for name, matrix in _parts(update).items()}
    if weights.final_norm is not None:
        found[FINAL_NORM] = weights.final_norm[:, None]
    return found


def _parts(update: VocabularyUpdate) -> dict[str, Tensor]:
    vectors = {name: t[:, None] for name, t in (("scale", update.scale), ("shift", update.shift)) if t is not None}
    matrices = {name: t for name, t in (("full", update.full), ("rows", update.rows)) if t is not None}
    pair = {"a": update.pair.a.t(), "b": update.pair.b} if update.pair is not None else {}
    return {**matrices, **pair, **vectors}


@dataclass(frozen=True, slots=True)
class SpreadView:
    """A vocabulary part in the pool: `blocks [layers, rows, width]`, of which the first `count` rows are real."""

    blocks: Tensor
    count: int

    def matrix(self) -> Tensor:
        """`[count, width]`, a copy: for the small parts."""
        return self.blocks.flatten(0, 1)[: self.count]

    def vector(self) -> Tensor:
        """`[count]` of a part that is one element wide, a copy."""
        return self.matrix()[:, 0]

    def lookup(self, rows: Tensor) -> Tensor:
        """`rows [n]` int64 → `[n, width]`."""
        size = self.blocks.shape[1]
        return self.blocks[rows // size, rows % size]

    def product(self, x: Tensor) -> Tensor:
        """`x [n, width]` times the transpose → `[n, count]`, from where the blocks lie.

        One product a block: as one batched product, torch multiplies bfloat16 seven times slower.
        """
        return torch.cat([F.linear(x, block) for block in self.blocks], dim=1)[:, : self.count]


@dataclass(frozen=True, slots=True)
class ExtraViews:
    """An adapter's extra parts in the pool, by layer and name and by name; `tokens` as int64 tensors."""

    layers: tuple[Mapping[str, Tensor], ...]
    spreads: Mapping[str, SpreadView]
    tokens: Mapping[str, Tensor]


def extra_views(vectors: Tensor, layout: ExtrasLayout) -> ExtraViews:
    """The parts in `vectors [layers, elements]`, without copies."""
    layers = tuple(
        {name: vectors[layer, v.begin : v.begin + v.length] for name, v in places.items()}
        for layer, places in enumerate(layout.layers)
    )
    spreads = {}
    for name, s in layout.spreads.items():
        blocks = vectors[:, s.begin : s.begin + s.rows * s.width].view(-1, s.rows, s.width)
        spreads[name] = SpreadView(blocks, s.count)
    tokens = {prefix: torch.tensor(ids, device=vectors.device) for prefix, ids in layout.tokens.items()}
    return ExtraViews(layers, spreads, tokens)
