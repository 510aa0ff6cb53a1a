"""A pool with adapters in it, a step over them, and what must come out, in float64. What no kernel may read is NaN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lorafleet_kernels.gpu.forms.lora import GroupShape, LoraConfig, Tiles, Variant
from lorafleet_kernels.gpu.lora.host import AdapterPlace, Segment, StepSizes, describe, fill_step, most_items
from lorafleet_kernels.gpu.lora.step import GroupForm, LoraStep, Scratch
from lorafleet_kernels.gpu.lora.step_buffer import batch_in
from lorafleet_kernels.gpu.specialization import INTERPRETED
from lorafleet_kernels.reference_lora import AdaptedRows, lora_rows
from lorafleet_runtime.model.adapter_weights import AdapterWeights, LoraPair
from lorafleet_runtime.model.config import GROUPS, DecoderConfig
from lorafleet_runtime.model.lora import GroupView, PackedAdapter, grain_for, pack, vectors_in, views
from lorafleet_runtime.model.lora_fp8 import fp8_matrices, pack_fp8, scales_of
from lorafleet_runtime.model.tiny import tiny_config

TYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 2.0**-22, torch.float16: 2.0**-11, torch.bfloat16: 2.0 ** (-7 if INTERPRETED else -8)}
"""Of a result that was rounded once: half a unit in its last place (float32, which sums in another order: two). The
interpreter does not round to bfloat16, it cuts: up to a whole unit."""
NOISE = 1e-5
"""Of the largest number of a result: what float32 sums lose before that rounding."""

USUAL = replace(
    tiny_config("llama"), hidden_size=256, intermediate_size=384, head_dim=128, num_heads=2, num_kv_heads=1
)  # fmt: skip
"""A grain of 128: the usual tiles."""
ODD = replace(tiny_config("llama"), hidden_size=100, intermediate_size=52, head_dim=20, num_heads=2, num_kv_heads=1)
"""Widths that no tile divides: padded to a grain of 16."""
LAYER = 1
Ranks = Mapping[str, int]
"""Of an adapter, by target."""


@dataclass(frozen=True)
class Case:
    """One step, ready to run, and the adapters in float64: `truth` by adapter, of layer `LAYER`."""

    step: LoraStep
    scratch: Scratch
    segments: Sequence[Segment]
    truth: Sequence[Mapping[str, GroupView]]
    generator: torch.Generator
    dtype: torch.dtype
    device: torch.device

    def inputs(self, rows: int, columns: int) -> Tensor:
        """Random `[rows, columns]`, in a larger tensor of NaN."""
        around = torch.full((rows + 2, columns + 24), float("nan"), dtype=self.dtype, device=self.device)
        around[1:-1, 8:-16] = torch.randn(rows, columns, generator=self.generator)
        return around[1:-1, 8:-16]

    def adapted(self, group: str) -> list[AdaptedRows]:
        """The segments that have a delta there, for the specification in float64."""
        found = [(begin, end, self.truth[adapter].get(group)) for begin, end, adapter in self.segments if adapter >= 0]
        return [AdaptedRows(begin, end, view.a, view.parts) for begin, end, view in found if view is not None]

    def expected(self, group: str, x: Tensor, y: Tensor) -> Tensor:
        """`y + deltas`."""
        out = y.double().cpu()
        lora_rows(out, x.double().cpu(), self.adapted(group))
        return out

    def base_rows(self, rows: int) -> Tensor:
        """Which are the base model's, bool."""
        base = torch.ones(rows, dtype=torch.bool)
        for begin, end, adapter in self.segments:
            base[begin:end] = adapter < 0
        return base


def shapes(config: DecoderConfig) -> dict[str, GroupShape]:
    return {
        group: GroupShape(config.linear_shape(targets[0])[1], tuple(config.linear_shape(t)[0] for t in targets))
        for group, targets in GROUPS.items()
    }


def narrow(variant: Variant, grain: int, splits: int = 2) -> LoraConfig:
    m = 16 if variant is Variant.TILES else 1
    return LoraConfig(variant, Tiles(m, 16, grain, 4, 2), Tiles(m, grain, 16, 4, 2), splits, 2)


def make(
    ranks: Sequence[Ranks], segments: Sequence[Segment], dtype: torch.dtype, device: torch.device,
    *, rows: int, config: DecoderConfig = USUAL, lora: LoraConfig | None = None, variant: Variant = Variant.TILES,
    fp8: torch.dtype | None = None, modules: Sequence[AdapterWeights] | None = None,
) -> Case:  # fmt: skip
    """Adapters of these ranks in scattered pages of a pool that has as many again for others. `fp8`: they are e4m3,
    which kernels read as this type, and what they may not read is the largest number that it has no number for.
    `modules`: instead of random ones."""
    generator = torch.Generator().manual_seed(0)
    page = 32 * config.kv_dim
    grain = grain_for(config, page)
    lora = lora or narrow(variant, min(grain, 128))
    packs = pack if fp8 is None else pack_fp8
    modules = modules or [weights(r, config, generator) for r in ranks]
    packed = [packs(m, config, page, dtype, grain) for m in modules]
    kept = [_kept(packs(weights(r, config, None), config, page, dtype, grain), fp8 is not None) for r in ranks]
    count = sum(p.layout.pages for p in packed)
    free = torch.randperm(2 * count + 1, generator=generator).tolist()
    blank = float("nan") if fp8 is None else 255
    pool = torch.full((config.num_layers, len(free), page), float("nan"), dtype=dtype)
    if fp8 is not None:
        pool = pool.view(torch.uint8).fill_(255)
    places, truth = [], []
    max_rank = max((rank for r in ranks for rank in r.values()), default=1)
    described = [describe(p.layout.layers, shapes(config), grain, max_rank) for p in packed]
    for number, (p, real) in enumerate(zip(packed, kept, strict=True)):
        own = [free.pop() for _ in range(p.layout.pages)]
        pool.index_copy_(1, torch.tensor(own, dtype=torch.int64), p.blob.masked_fill(~real, blank))
        places.append(AdapterPlace(number, np.array(own, np.int32)))
        truth.append(_truth(pool, own, p) if own else {})

    sizes = StepSizes(rows, most_items(rows, len(segments), max(lora.shrink.m, 1)) + 1, len(ranks) + 1, count + 3)
    buffer = np.full(sizes.total, 1 << 20, np.int32)
    fill_step(buffer, sizes, segments, places, lora.shrink.m)
    layouts = torch.from_numpy(np.stack([*described, np.full_like(described[0], 1 << 20)]) if described else
                               np.zeros((1, config.num_layers, 4, 8), np.int32)).to(device)  # fmt: skip
    forms = {group: GroupForm(shape, lora) for group, shape in shapes(config).items()}
    scratch = Scratch.of(forms, rows, max_rank, device)
    scratch.planes.fill_(float("nan"))
    batch = batch_in(torch.from_numpy(buffer).to(device), sizes, layouts, grain)
    step = LoraStep(pool.view(fp8 or dtype).to(device), batch, forms, scratch, max_rank)
    return Case(step, scratch, segments, truth, generator, dtype, device)


def _kept(ones: PackedAdapter, fp8: bool) -> Tensor:
    """Of an adapter of ones, what is no padding."""
    if fp8:  # some bytes of a scale may be zero
        for vector, groups in zip(ones.blob.flatten(1), ones.layout.layers, strict=True):
            for slices in groups.values():
                scales_of(vector, slices).view(torch.uint8).fill_(1)
    return ones.blob != 0


def _truth(pool: Tensor, pages: list[int], packed: PackedAdapter) -> Mapping[str, GroupView]:
    if pool.dtype is not torch.uint8:
        return views(pool.double(), pages, packed.layout)[LAYER]
    found = fp8_matrices(vectors_in(pool, pages), packed.layout)[LAYER]
    return {
        group: GroupView(view.a.double(), tuple(replace(part, b=part.b.double()) for part in view.parts))
        for group, view in found.items()
    }


def weights(ranks: Ranks, config: DecoderConfig, generator: torch.Generator | None) -> AdapterWeights:
    """Random pairs in every layer, in float32; without a generator, of ones."""
    pairs = {}
    for layer in range(config.num_layers):
        for target, rank in ranks.items():
            out, k = config.linear_shape(target)
            if generator is None:
                pairs[layer, target] = LoraPair(torch.ones(rank, k), torch.ones(out, rank))
            else:
                a, b = torch.randn(rank, k, generator=generator), torch.randn(out, rank, generator=generator)
                pairs[layer, target] = LoraPair(a / k**0.5, b / rank**0.5)
    return AdapterWeights(max(ranks.values(), default=0), pairs, tuple(ranks))


def close(got: Tensor, expected: Tensor) -> None:
    """Within the tolerance of its type."""
    error = (got.double().cpu() - expected).abs()
    allowed = TOLERANCE[got.dtype] * expected.abs() + NOISE * expected.abs().max()
    worst = (error / allowed).max().item() if error.numel() else 0.0
    assert worst <= 1, f"{worst:.3g} times what {got.dtype} may be off"
