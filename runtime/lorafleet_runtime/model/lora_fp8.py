"""Adapters whose matrices are e4m3: half the pages, host memory and disk of two-byte ones, half of what a step reads.

They lie as `lora` says, in bytes. Up to a group's A go its ranks' scales, float32: rank r's is that of A's row r times
that of Bᵀ's, as one number after the first product serves both. What is no pair of a projection (`extras`) keeps the
pool's type: vectors are small, and rows of the vocabulary are no factor of a sum, in which errors would even out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lorafleet_kernels.fp8_rows import dequantise, quantise
from lorafleet_kernels.reference import LoraPart
from lorafleet_runtime.model.adapter_weights import AdapterWeights
from lorafleet_runtime.model.config import GROUPS, DecoderConfig
from lorafleet_runtime.model.errors import InvalidAdapter
from lorafleet_runtime.model.extras import pack_extras, plan_extras
from lorafleet_runtime.model.lora import GroupView, Layout, PackedAdapter, Slice, plan_slices, rows_of, signature_of

SCALE_BYTES = 4


def plan_fp8(weights: AdapterWeights, config: DecoderConfig, page_bytes: int, itemsize: int, grain: int) -> Layout:
    """Offsets in bytes; those of extras in elements of the pool's type, which has `itemsize` bytes.

    Raises ValueError where the grain does not divide the page.
    """
    if page_bytes % grain or grain % SCALE_BYTES:
        raise ValueError(f"a grain of {grain} bytes does not divide the page of {page_bytes}, or holds no whole scales")
    layers, ends = plan_slices(weights, config, grain, SCALE_BYTES)
    extras = plan_extras(weights, config, [-(-end // itemsize) for end in ends])
    longest = max(ends) if extras is None else extras.end * itemsize
    return Layout(layers, -(-longest // page_bytes), signature_of(layers), extras)


def pack_fp8(
    weights: AdapterWeights, config: DecoderConfig, page_elements: int, dtype: torch.dtype, grain: int
) -> PackedAdapter:
    """Lay an adapter out once, off the step: `blob [layers, pages, bytes of a page]` uint8. `page_elements`: of a page
    in the pool's `dtype`. Raises InvalidAdapter for numbers that are too large for the format."""
    page_bytes = page_elements * dtype.itemsize
    layout = plan_fp8(weights, config, page_bytes, dtype.itemsize, grain)
    blob = torch.zeros(config.num_layers, layout.pages * page_bytes, dtype=torch.uint8)
    for layer, groups in enumerate(layout.layers):
        for group, slices in groups.items():
            present = [t for t in GROUPS[group] if (layer, t) in weights.modules]
            scales: list[Tensor] = []
            for target, s in zip(present, slices, strict=True):
                scales.append(_pack_pair(blob[layer], s, weights, layer, target))
            scales_of(blob[layer], slices).copy_(torch.cat(scales))
    if layout.extras is not None:
        pack_extras(blob.view(dtype), layout.extras, weights, config)
    return PackedAdapter(layout, blob.view(config.num_layers, layout.pages, page_bytes))


def fp8_matrices(vectors: Tensor, layout: Layout) -> tuple[Mapping[str, GroupView], ...]:
    """What the kernels compute with, from an adapter's `vectors [layers, bytes]` uint8, in float32: copies, by layer
    and group. All scales are in A."""
    return tuple(
        {group: _view(vectors[layer], slices) for group, slices in groups.items()}
        for layer, groups in enumerate(layout.layers)
    )


def scales_of(vector: Tensor, slices: tuple[Slice, ...]) -> Tensor:
    """The scales `[ΣR]` of a group, float32, in a layer's vector of bytes."""
    ranks = sum(s.rank for s in slices)
    return vector[slices[0].a - SCALE_BYTES * ranks : slices[0].a].view(torch.float32)


def _pack_pair(vector: Tensor, s: Slice, weights: AdapterWeights, layer: int, target: str) -> Tensor:
    """Write a pair's codes; its scales `[rank]`."""
    pair = weights.modules[layer, target]
    assert s.a_rows == s.rank, "ranks of tensor parallelism hold no adapters in fp8"
    try:
        (a, of_a), (b, of_b) = quantise(pair.a), quantise(pair.b.t())
    except ValueError as error:
        raise InvalidAdapter(f"layer {layer}, {target}: {error}; serve it with --adapter-dtype auto") from error
    rows_of(vector, s.a, s.rank, s.k, s.a_stride).copy_(a)
    rows_of(vector, s.b, s.rank, s.end - s.begin, s.b_stride).copy_(b)
    return of_a * of_b


def _view(vector: Tensor, slices: tuple[Slice, ...]) -> GroupView:
    first, scales = slices[0], scales_of(vector, slices)
    a = dequantise(rows_of(vector, first.a, len(scales), first.k, first.a_stride), scales)
    parts: list[LoraPart] = []
    for s in slices:
        codes = rows_of(vector, s.b, s.rank, s.end - s.begin, s.b_stride)
        parts.append(LoraPart(s.begin, s.end, dequantise(codes, torch.ones_like(scales[: s.rank]))))
    return GroupView(a, tuple(parts))
