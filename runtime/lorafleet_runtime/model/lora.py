"""How an adapter's weights lie in pool pages, and how a layer finds them there.

A decoder layer has four fused linear groups; an adapter has A and Bᵀ of some of their projections. Per layer they
form one vector, group after group: the A rows of the group's projections, then their Bᵀ rows. The vector is cut into
pages; page ids are the same in every layer, as for KV. Rank-exact: nothing is padded but the last page. What is no pair
of a projection (DoRA, norms, the vocabulary's matrices) lies behind, as `extras` says."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lorafleet_kernels.reference import LoraPart
from lorafleet_runtime.core.pages import is_run
from lorafleet_runtime.model.adapter_weights import AdapterWeights
from lorafleet_runtime.model.config import GROUPS as GROUPS
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.extras import ExtrasLayout, pack_extras, plan_extras


@dataclass(frozen=True, slots=True)
class Slice:
    """Where one projection of one layer lies in the layer's vector, in elements, and which output columns it feeds.
    `a_rows` is `rank`, but for a rank's part of an A that is split along it."""

    a: int
    b: int
    a_rows: int
    rank: int
    k: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Slices by layer and group, and the pages that the longest layer needs. Two adapters with the same `signature`
    have the same ranks and targets everywhere, so that their matrices can be stacked; `extras` are not stacked."""

    layers: tuple[Mapping[str, tuple[Slice, ...]], ...]
    pages: int
    signature: Hashable
    extras: ExtrasLayout | None = None

    @property
    def identity(self) -> Hashable:
        """Equal for equal layouts."""
        return self.signature, None if self.extras is None else self.extras.identity

    @property
    def adapts_projections(self) -> bool:
        """Whether there is a pair at all: an adapter may change norms or the vocabulary only."""
        return any(self.layers)


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """The golden copy in host memory: `blob [layers, pages, page elements]`, laid out as in the pool."""

    layout: Layout
    blob: Tensor


def plan_layout(weights: AdapterWeights, config: DecoderConfig, page_elements: int) -> Layout:
    """Offsets of every projection. Within a group all A rows are adjacent, so that one product shrinks them all."""
    layers: list[Mapping[str, tuple[Slice, ...]]] = []
    ends: list[int] = []
    for layer in range(config.num_layers):
        groups: dict[str, tuple[Slice, ...]] = {}
        offset = 0
        for group, targets in GROUPS.items():
            present = [t for t in targets if (layer, t) in weights.modules]
            k = config.linear_shape(targets[0])[1]
            a = offset
            b = a + k * sum(weights.modules[layer, t].a.shape[0] for t in present)
            slices: list[Slice] = []
            column = 0
            for target in targets:
                if target in present:
                    a_rows = weights.modules[layer, target].a.shape[0]
                    out, rank = weights.modules[layer, target].b.shape
                    slices.append(Slice(a, b, a_rows, rank, k, column, column + out))
                    a += a_rows * k
                    b += rank * out
                column += config.linear_shape(target)[0]
            offset = b
            if slices:
                groups[group] = tuple(slices)
        layers.append(groups)
        ends.append(offset)
    signature = tuple(tuple(groups.items()) for groups in layers)
    extras = plan_extras(weights, config, ends)
    longest = max(ends) if extras is None else extras.end
    return Layout(tuple(layers), -(-longest // page_elements), signature, extras)


def pack(weights: AdapterWeights, config: DecoderConfig, page_elements: int, dtype: torch.dtype) -> PackedAdapter:
    """Lay an adapter out once, off the step."""
    layout = plan_layout(weights, config, page_elements)
    blob = torch.zeros(config.num_layers, layout.pages * page_elements, dtype=dtype)
    for layer, groups in enumerate(layout.layers):
        for group, slices in groups.items():
            present = [t for t in GROUPS[group] if (layer, t) in weights.modules]
            for target, s in zip(present, slices, strict=True):
                pair = weights.modules[layer, target]
                blob[layer, s.a : s.a + s.a_rows * s.k] = pair.a.to(dtype).reshape(-1)
                blob[layer, s.b : s.b + s.rank * (s.end - s.begin)] = pair.b.t().to(dtype).reshape(-1)
    if layout.extras is not None:
        pack_extras(blob, layout.extras, weights, config)
    return PackedAdapter(layout, blob.view(config.num_layers, layout.pages, page_elements))


@dataclass(frozen=True, slots=True)
class GroupView:
    """One group of one layer, read from the pool: `a [ΣR, K]` and its parts."""

    a: Tensor
    parts: tuple[LoraPart, ...]


def vectors_in(pool: Tensor, pages: list[int]) -> Tensor:
    """The vectors `[layers, elements]` of an adapter whose pages in `pool [layers, P, page elements]` these are.

    A view where the pages are consecutive; a copy, to be made once per residency, where they are not.
    """
    if is_run(pages):
        return pool[:, pages[0] : pages[0] + len(pages)].flatten(1)
    return pool.index_select(1, torch.tensor(pages)).flatten(1)


def views(pool: Tensor, pages: list[int], layout: Layout) -> tuple[Mapping[str, GroupView], ...]:
    """The adapter's matrices in the pool, by layer and group."""
    return matrices(vectors_in(pool, pages), layout)


def matrices(vectors: Tensor, layout: Layout) -> tuple[Mapping[str, GroupView], ...]:
    """The adapter's matrices in its `vectors [layers, elements]`, by layer and group."""
    return tuple(_layer_views(vectors[i], groups) for i, groups in enumerate(layout.layers))


def _layer_views(vector: Tensor, groups: Mapping[str, tuple[Slice, ...]]) -> Mapping[str, GroupView]:
    found: dict[str, GroupView] = {}
    for group, slices in groups.items():
        k = slices[0].k
        rows = sum(s.a_rows for s in slices)
        a = vector[slices[0].a : slices[0].a + rows * k].view(rows, k)
        parts: list[LoraPart] = []
        for s in slices:
            b = vector[s.b : s.b + s.rank * (s.end - s.begin)].view(s.rank, s.end - s.begin)
            parts.append(LoraPart(s.begin, s.end, b))
        found[group] = GroupView(a, tuple(parts))
    return found
