"""Adapters in a pool, on the device, without host copies of them: the engine's own layout, filled with noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bench.kernels_cases import shapes
from lorafleet_kernels.gpu.beside import Beside
from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.lora import ROWS_OF_A_TILE, StepShape, Variant
from lorafleet_kernels.gpu.forms.weight_types import as_fp8, name_of
from lorafleet_kernels.gpu.layers import FUSED_ROWS
from lorafleet_kernels.gpu.lora.host import AdapterPlace, Segment, StepSizes, describe, fill_step, most_items
from lorafleet_kernels.gpu.lora.step import GroupForm, LoraStep, Scratch
from lorafleet_kernels.gpu.lora.step_buffer import batch_in
from lorafleet_kernels.gpu.tuning.document import Tuning
from lorafleet_kernels.gpu.tuning.lora.lookup import ModelShapes, forms_for
from lorafleet_kernels.gpu.tuning.store import load
from lorafleet_runtime.model.adapter_weights import AdapterWeights, LoraPair
from lorafleet_runtime.model.config import LORA_TARGETS, DecoderConfig
from lorafleet_runtime.model.lora import GroupView, Layout, grain_for, matrices, plan_layout
from lorafleet_runtime.model.lora_fp8 import SCALE_BYTES, fp8_matrices, plan_fp8


@dataclass(frozen=True, slots=True)
class StoredAdapters:
    """`pool [layers, P, page elements]`, of `dtype` or as kernels read e4m3; of each adapter its layout and page ids,
    on the host and on the device."""

    config: DecoderConfig
    dtype: torch.dtype
    pool: Tensor
    grain: int
    ranks: tuple[int, ...]
    layouts: tuple[Layout, ...]
    pages: tuple[Tensor, ...]
    places: tuple[AdapterPlace, ...]
    descriptions: Tensor

    def views(self, adapter: int, layer: int, group: str) -> GroupView:
        """Copies of its matrices, gathered from the pages."""
        vector = _bytes(self.pool)[layer, self.pages[adapter]].flatten()
        layout = self.layouts[adapter]
        one = Layout((layout.layers[layer],), layout.pages, layout.signature)
        found = fp8_matrices(vector[None], one) if self.pool.element_size() == 1 else matrices(vector[None], one)
        return found[0][group]

    def step(self, segments: Sequence[Segment], rows: int, card: Card, forced: Variant | None = None) -> LoraStep:
        """One over these segments, in the forms that the engine would choose, or in those for the other variant."""
        told = _told(rows, len(segments), forced)
        groups = shapes(self.config)
        model = ModelShapes(groups, name_of(self.dtype), name_of(self.pool.dtype), self.grain)
        chosen = forms_for(StepShape(*told, max(self.ranks)), tunings(card), model, card.processors)
        forms, m = {name: GroupForm(groups[name], form) for name, form in chosen.configs.items()}, chosen.m
        pages = sum(len(place.pages) for place in self.places)
        items = most_items(rows, len(segments), m) if m > 1 else 0
        sizes = StepSizes(rows, items, len(self.places), pages)
        buffer = np.empty(sizes.total, np.int32)
        fill_step(buffer, sizes, segments, self.places, m)
        device, rank = self.pool.device, max(self.ranks)
        batch = batch_in(torch.from_numpy(buffer).to(device), sizes, self.descriptions, self.grain)
        beside = Beside(device) if device.type == "cuda" and rows <= FUSED_ROWS else None
        return LoraStep(self.pool, batch, forms, Scratch.of(forms, rows, rank, device), rank, beside)


@cache
def tunings(card: Card) -> tuple[Tuning, ...]:
    """What is stored of it, read once."""
    return tuple(load(card))


def _told(rows: int, segments: int, forced: Variant | None) -> tuple[int, int]:
    """Rows and segments to tell `choose` of, for it to choose this variant: the true ones where it does anyway."""
    if forced is None:
        return rows, segments
    if forced is Variant.ROWS:
        return rows, max(segments, rows)
    return max(rows, ROWS_OF_A_TILE), min(segments, max(rows // ROWS_OF_A_TILE, 1))


def stored(
    config: DecoderConfig, ranks: Sequence[int], targets: Sequence[str], device: torch.device,
    dtype: torch.dtype = torch.bfloat16, fp8: bool = False,
) -> StoredAdapters:  # fmt: skip
    """Adapters of these ranks on `targets`, in pages in random order. Noise is scaled so that deltas are about 1."""
    page = 32 * config.kv_dim
    grain = grain_for(config, page)
    shown = {rank: _shapes_only(config, rank, targets) for rank in set(ranks)}
    if fp8:
        page *= dtype.itemsize
        planned = {rank: plan_fp8(each, config, page, dtype.itemsize, grain) for rank, each in shown.items()}
    else:
        planned = {rank: plan_layout(each, config, page, grain) for rank, each in shown.items()}
    numbers = {rank: number for number, rank in enumerate(planned)}
    described = [describe(p.layers, shapes(config), grain, max(ranks)) for p in planned.values()]
    count = sum(planned[rank].pages for rank in ranks)
    order = np.random.default_rng(0).permutation(count).astype(np.int32)
    places, pages, begin = [], [], 0
    for rank in ranks:
        own = order[begin : begin + planned[rank].pages]
        begin += len(own)
        places.append(AdapterPlace(numbers[rank], own))
        pages.append(torch.from_numpy(own.astype(np.int64)).to(device))
    torch.manual_seed(0)
    spread = (max(config.linear_shape(t)[1] for t in targets) * max(ranks)) ** -0.25
    if fp8:
        pool = _coded(config.num_layers, count, page, device)
        for at, rank in zip(pages, ranks, strict=True):
            _scale(pool, at, planned[rank], spread**2)
        pool = as_fp8(pool, Card.of(device).capability)
    else:
        pool = torch.empty(config.num_layers, count, page, dtype=dtype, device=device).normal_(std=spread)
    return StoredAdapters(
        config, dtype, pool, grain, tuple(ranks), tuple(planned[rank] for rank in ranks), tuple(pages), tuple(places),
        torch.from_numpy(np.stack(described)).to(device),
    )  # fmt: skip


def _bytes(pool: Tensor) -> Tensor:
    """A pool of e4m3 as what torch can gather."""
    return pool.view(torch.uint8) if pool.element_size() == 1 else pool


def _coded(layers: int, count: int, page: int, device: torch.device) -> Tensor:
    """Normal noise in e4m3, as bytes; layer by layer, as it is four times as large before."""
    pool = torch.empty(layers, count, page, dtype=torch.uint8, device=device)
    for layer in pool:
        layer.copy_(torch.randn(count, page, device=device).to(torch.float8_e4m3fn).view(torch.uint8))
    return pool


def _scale(pool: Tensor, pages: Tensor, layout: Layout, scale: float) -> None:
    """Give all ranks of an adapter this scale, or the power of two below it: layers are alike."""
    item = torch.tensor([2.0 ** math.floor(math.log2(scale))]).view(torch.uint8)
    for slices in layout.layers[0].values():
        ranks = sum(s.rank for s in slices)
        at = torch.arange(slices[0].a - SCALE_BYTES * ranks, slices[0].a, device=pool.device)
        pool[:, pages[at // pool.shape[2]], at % pool.shape[2]] = item.repeat(ranks).to(pool.device)


def _shapes_only(config: DecoderConfig, rank: int, targets: Sequence[str]) -> AdapterWeights:
    """Matrices without memory: a layout is planned by shapes."""
    pairs: dict[tuple[int, str], LoraPair] = {}
    for target in targets:
        out, k = config.linear_shape(target)
        pair = LoraPair(torch.empty(rank, k, device="meta"), torch.empty(out, rank, device="meta"))
        pairs |= {(layer, target): pair for layer in range(config.num_layers)}
    return AdapterWeights(rank, pairs, tuple(t for t in LORA_TARGETS if t in targets))
