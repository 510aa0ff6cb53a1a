"""How an adapter's weights lie in pool pages, and how a layer finds them there.

A decoder layer has four fused linear groups; an adapter has A and Bᵀ of some of their projections. Per layer they
form one vector, group after group: the A rows of the group's projections, then their Bᵀ rows. The vector is cut into
pages; page ids are the same in every layer, as for KV. Rank-exact: nothing is padded but the last page, and rows to the
layout's grain, which divides the widths of all usual models. What is no pair of a projection (DoRA, norms, the
vocabulary's matrices) lies behind, as `extras` says."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from lorafleet_kernels.reference import LoraPart
from lorafleet_runtime.core.pages import is_run
from lorafleet_runtime.model.adapter_weights import AdapterWeights
from lorafleet_runtime.model.config import GROUPS as GROUPS
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.extras import ExtrasLayout, pack_extras, plan_extras

LEAST_GRAIN, MOST_GRAIN = 16, 256
"""Of GPUs' layouts: 16 elements of 2 bytes are what one thread reads at best, twice; 256 are the longest tile."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Where one projection of one layer lies in the layer's vector, in elements, and which output columns it feeds.
    `a_rows` is `rank`, but for a rank's part of an A that is split along it. Rows begin `grain`-aligned."""

    a: int
    b: int
    a_rows: int
    rank: int
    k: int
    begin: int
    end: int
    grain: int = 1

    @property
    def a_stride(self) -> int:
        """Elements from one row of A to the next."""
        return up(self.k, self.grain)

    @property
    def b_stride(self) -> int:
        """Elements from one row of Bᵀ to the next."""
        return up(self.end - self.begin, self.grain)


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

    @property
    def largest_rank(self) -> int:
        """Of all pairs; 0 where there is none."""
        return max((s.rank for groups in self.layers for slices in groups.values() for s in slices), default=0)


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """The golden copy in host memory: `blob [layers, pages, page elements]`, laid out as in the pool."""

    layout: Layout
    blob: Tensor


def grain_for(config: DecoderConfig, page_elements: int) -> int:
    """The grain of GPUs: the largest power of two, up to 256, that divides all widths and the page, so that it costs
    nothing; at least 16, to which the rows of a model of odd widths are padded.

    Raises ValueError for a page that is no multiple of 16 elements; pages of KV are.
    """
    if page_elements % LEAST_GRAIN:
        raise ValueError(f"a page of {page_elements} elements is no multiple of {LEAST_GRAIN}: rows would cross pages")
    shapes = [config.linear_shape(target) for targets in GROUPS.values() for target in targets]
    common = gcd(page_elements, MOST_GRAIN, *(width for shape in shapes for width in shape))
    return max(common, LEAST_GRAIN)


def plan_layout(weights: AdapterWeights, config: DecoderConfig, page_elements: int, grain: int = 1) -> Layout:
    """Offsets of every projection. Within a group all A rows are adjacent, so that one product shrinks them all. Rows
    begin at multiples of `grain`, so that a run of so many elements of a row never crosses the pages' border.

    Raises ValueError where the grain does not divide the page.
    """
    if page_elements % grain:
        raise ValueError(f"a grain of {grain} elements does not divide the page of {page_elements}")
    layers, ends = plan_slices(weights, config, grain)
    extras = plan_extras(weights, config, ends)
    longest = max(ends) if extras is None else extras.end
    return Layout(layers, -(-longest // page_elements), signature_of(layers), extras)


def plan_slices(
    weights: AdapterWeights, config: DecoderConfig, grain: int, before_rank: int = 0
) -> tuple[tuple[Mapping[str, tuple[Slice, ...]], ...], list[int]]:
    """Where each layer's projections lie, and where the layer ends. `before_rank`: elements that each rank of a group
    has before the group's A, all together in a multiple of `grain`."""
    layers: list[Mapping[str, tuple[Slice, ...]]] = []
    ends: list[int] = []
    for layer in range(config.num_layers):
        groups: dict[str, tuple[Slice, ...]] = {}
        offset = 0
        for group, targets in GROUPS.items():
            present = [t for t in targets if (layer, t) in weights.modules]
            k = config.linear_shape(targets[0])[1]
            a_rows = sum(weights.modules[layer, t].a.shape[0] for t in present)
            a = offset + up(before_rank * a_rows, grain)
            b = a + up(k, grain) * a_rows
            slices: list[Slice] = []
            column = 0
            for target in targets:
                if target in present:
                    a_rows = weights.modules[layer, target].a.shape[0]
                    out, rank = weights.modules[layer, target].b.shape
                    s = Slice(a, b, a_rows, rank, k, column, column + out, grain)
                    slices.append(s)
                    a += a_rows * s.a_stride
                    b += rank * s.b_stride
                column += config.linear_shape(target)[0]
            offset = b
            if slices:
                groups[group] = tuple(slices)
        layers.append(groups)
        ends.append(offset)
    return tuple(layers), ends


def signature_of(layers: tuple[Mapping[str, tuple[Slice, ...]], ...]) -> Hashable:
    """What `Layout.signature` is."""
    return tuple(tuple(groups.items()) for groups in layers)


def pack(
    weights: AdapterWeights, config: DecoderConfig, page_elements: int, dtype: torch.dtype, grain: int = 1
) -> PackedAdapter:
    """Lay an adapter out once, off the step."""
    layout = plan_layout(weights, config, page_elements, grain)
    blob = torch.zeros(config.num_layers, layout.pages * page_elements, dtype=dtype)
    for layer, groups in enumerate(layout.layers):
        for group, slices in groups.items():
            present = [t for t in GROUPS[group] if (layer, t) in weights.modules]
            for target, s in zip(present, slices, strict=True):
                pair = weights.modules[layer, target]
                rows_of(blob[layer], s.a, s.a_rows, s.k, s.a_stride).copy_(pair.a)
                rows_of(blob[layer], s.b, s.rank, s.end - s.begin, s.b_stride).copy_(pair.b.t())
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
    return pool.index_select(1, torch.tensor(pages, device=pool.device)).flatten(1)


def views(pool: Tensor, pages: list[int], layout: Layout) -> tuple[Mapping[str, GroupView], ...]:
    """The adapter's matrices in the pool, by layer and group."""
    return matrices(vectors_in(pool, pages), layout)


def matrices(vectors: Tensor, layout: Layout) -> tuple[Mapping[str, GroupView], ...]:
    """The adapter's matrices in its `vectors [layers, elements]`, by layer and group."""
    return tuple(_layer_views(vectors[i], groups) for i, groups in enumerate(layout.layers))


def _layer_views(vector: Tensor, groups: Mapping[str, tuple[Slice, ...]]) -> Mapping[str, GroupView]:
    found: dict[str, GroupView] = {}
    for group, slices in groups.items():
        first = slices[0]
        a = rows_of(vector, first.a, sum(s.a_rows for s in slices), first.k, first.a_stride)
        parts: list[LoraPart] = []
        for s in slices:
            parts.append(LoraPart(s.begin, s.end, rows_of(vector, s.b, s.rank, s.end - s.begin, s.b_stride)))
        found[group] = GroupView(a, tuple(parts))
    return found


def rows_of(vector: Tensor, begin: int, rows: int, width: int, stride: int) -> Tensor:
    """The matrix `[rows, width]` in a layer's vector, whose rows lie `stride` apart."""
    return vector[begin : begin + rows * stride].view(rows, stride)[:, :width]


def up(number: int, grain: int) -> int:
    """The least multiple of `grain` that is not below `number`."""
    return -(-number // grain) * grain
