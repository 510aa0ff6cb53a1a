"""The adapters of a step on a GPU: two launches a fused linear layer, or one and a part of the kernel that follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lorafleet_kernels.gpu.beside import Beside
from lorafleet_kernels.gpu.elementwise import norm_block
from lorafleet_kernels.gpu.forms.lora import GroupShape, LoraConfig, Variant, fused_tiles, over_fp8
from lorafleet_kernels.gpu.kernels import activation, lora_expand, lora_shrink, norm
from lorafleet_kernels.gpu.launch import in_step, options
from lorafleet_kernels.gpu.lora.batch import SLICES, LoraBatch
from lorafleet_kernels.gpu.specialization import INTERPRETED
from lorafleet_kernels.native_lora import LORA_GROUPS


@dataclass(frozen=True, slots=True)
class GroupForm:
    """A fused linear layer and the form that its kernels have in this step."""

    shape: GroupShape
    config: LoraConfig


@dataclass(frozen=True, slots=True)
class Scratch:
    """What the kernels of one layer hand to each other, used again by every layer: `planes`, float32, flat; `arrived
    [rows]` int32, zeros."""

    planes: Tensor
    arrived: Tensor

    @classmethod
    def of(cls, forms: Mapping[str, GroupForm], rows: int, max_rank: int, device: torch.device) -> Scratch:
        """Enough for steps of these forms."""
        elements = max((f.config.splits * rows * len(f.shape.widths) * max_rank for f in forms.values()), default=0)
        planes = torch.empty(elements, dtype=torch.float32, device=device)
        return cls(planes, torch.zeros(rows, dtype=torch.int32, device=device))


@dataclass(frozen=True, slots=True)
class PendingExpand:
    """An expand that another kernel takes in, after `LoraStep.shrink`. `tables`: weights, planes, row_adapters,
    adapters, pages, layouts, as the kernels want them; `counts`: from plane to plane, row to row, layout to layout, and
    how many planes; `page`: elements of one."""

    tables: tuple[Tensor, ...]
    counts: tuple[int, ...]
    page: int
    grain: int


class LoraStep:
    """`pool [layers, P, page elements]` (or the same with a page's own dimensions) holds the weights, of the type of
    activations or as `weight_types.as_fp8` gives it; `batch` says what is wanted of them. All tensors may be static:
    what a captured graph reads is what was copied there last."""

    def __init__(
        self, pool: Tensor, batch: LoraBatch, forms: Mapping[str, GroupForm], scratch: Scratch, max_rank: int,
        beside: Beside | None = None, dependent: bool = False,
    ) -> None:  # fmt: skip
        """`beside`: where shrinks run while the base model's products do; in line without. `dependent`: whether kernels
        start before those ahead of them have ended."""
        self._pool = pool.flatten(2)
        self.batch, self._forms, self._scratch, self._max_rank = batch, forms, scratch, max_rank
        self.beside = beside
        self.dependent = dependent
        self.launches = 0
        """Kernels that were started."""
        if self._pool.shape[2] % batch.grain:
            raise ValueError(f"pages of {self._pool.shape[2]} elements are no multiple of the grain, {batch.grain}")

    def __call__(self, layer: int, group: str, x: Tensor, y: Tensor) -> None:
        """`y [T, O]` += the deltas of the rows of `x [T, K]`, in place."""
        self.shrink(layer, group, x)
        self.expand(layer, group, y)

    def shrink(self, layer: int, group: str, x: Tensor) -> None:
        """Fill the planes for an expand of the same group."""
        form, batch = self._forms[group], self.batch
        config, rows = form.config, len(x)
        self._check(group, rows, x.shape[1], form.shape.k)
        tiles = config.shrink
        tiled = config.variant is Variant.TILES
        count = batch.work.shape[0] if tiled else rows
        if rows == 0 or count == 0:
            return
        arguments = (*self.tables(layer, group, batch.work if tiled else batch.row_adapters), x.stride(0))
        sizes = (*self._strides(group, rows), form.shape.k)
        shared = {"PAGE": self._pool.shape[2], "GRAIN": batch.grain, "BLOCK_N": tiles.n, "BLOCK_K": tiles.k}
        grid = (count, config.lanes, config.splits)
        own = {"BLOCK_M": tiles.m, "UPCAST": INTERPRETED} if tiled else {"STAGES": tiles.stages}
        kernel = lora_shrink.shrink_tiles if tiled else lora_shrink.shrink_rows
        kernel[grid](x, *arguments, *sizes, **shared, **own, **options(tiles, self.dependent))
        self.launches += 1

    def expand(self, layer: int, group: str, y: Tensor) -> None:
        """`y [T, O]` += the deltas, from the planes that `shrink` left."""
        form, batch = self._forms[group], self.batch
        widths = form.shape.widths
        self._check(group, len(y), y.shape[1], sum(widths))
        tiles = form.config.expand
        tiled = form.config.variant is Variant.TILES
        count = batch.work.shape[0] if tiled else len(y)
        if len(y) == 0 or count == 0:
            return
        rows = batch.work if tiled else batch.row_adapters
        sizes = (y.stride(0), *widths, *(0,) * (SLICES - len(widths)), *self.counts(group, len(y)))
        shared = {"PAGE": self._pool.shape[2], "GRAIN": batch.grain, "BLOCK_N": tiles.n, "BLOCK_R": tiles.k}
        own = {"BLOCK_M": tiles.m, "UPCAST": INTERPRETED} if tiled else {}
        grid = (count, sum(-(-width // tiles.n) for width in widths))
        if self._pool.element_size() == 1 and not tiled:
            tiles = over_fp8(tiles)
        kernel = lora_expand.expand_tiles if tiled else lora_expand.expand_rows
        kernel[grid](y, *self.tables(layer, group, rows), *sizes, **shared, **own, **options(tiles, self.dependent))
        self.launches += 1

    def pending(self, layer: int, group: str, y: Tensor) -> PendingExpand:
        """What is left to add to `y [T, O]`, for a kernel that reads it next."""
        self._check(group, len(y), y.shape[1], sum(self._forms[group].shape.widths))
        tables = self.tables(layer, group, self.batch.row_adapters)
        return PendingExpand(tables, self.counts(group, len(y)), self._pool.shape[2], self.batch.grain)

    def expand_silu_and_mul(self, layer: int, x: Tensor) -> Tensor:
        """`silu(gate) · up` → `[T, I]` of `x [T, 2·I]`, each with its delta, which is not written back."""
        shape, tiles = self._forms["gate_up"].shape, fused_tiles(self.batch.grain)
        width = shape.widths[0]
        self._check("gate_up", len(x), x.shape[1], 2 * width)
        out = x.new_empty(len(x), width)
        if len(x) == 0:
            return out
        activation.expand_silu_and_mul[(len(x), -(-width // tiles.n))](
            out, x, *self.tables(layer, "gate_up", self.batch.row_adapters),
            out.stride(0), x.stride(0), width, *self.counts("gate_up", len(x)),
            PAGE=self._pool.shape[2], GRAIN=self.batch.grain, BLOCK_N=tiles.n, BLOCK_R=tiles.k,
            **options(tiles, self.dependent),
        )  # fmt: skip
        self.launches += 1
        return out

    def expand_add_rms_norm(self, layer: int, group: str, x: Tensor, y: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`x += y + delta` in place, then its norm. `x, y [T, H]`; `group`: o or down, which made y."""
        tiles = fused_tiles(self.batch.grain)
        width = self._forms[group].shape.widths[0]
        self._check(group, len(x), x.shape[1], width)
        out = torch.empty_like(x)
        if len(x) == 0:
            return out
        norm.expand_add_rms_norm[(len(x), -(-width // tiles.n))](
            out, x, y, weight, self._scratch.arrived, *self.tables(layer, group, self.batch.row_adapters),
            out.stride(0), x.stride(0), y.stride(0), width, eps, *self.counts(group, len(x)),
            PAGE=self._pool.shape[2], GRAIN=self.batch.grain, BLOCK_N=tiles.n, BLOCK_R=tiles.k,
            BLOCK=norm_block(width), num_warps=norm.WARPS, **in_step(self.dependent),
        )  # fmt: skip
        self.launches += 1
        return out

    def tables(self, layer: int, group: str, rows: Tensor) -> tuple[Tensor, ...]:
        """What any kernel with LoRA in it reads: the layer's pool `[P, page elements]`, planes, `rows` (the batch's
        work, or its row adapters), adapters, pages, and the group's layouts."""
        batch = self.batch
        layouts = batch.layouts[:, layer, LORA_GROUPS.index(group)]
        return self._pool[layer], self._scratch.planes, rows, batch.adapters, batch.pages, layouts

    def _strides(self, group: str, rows: int) -> tuple[int, int, int]:
        """From one plane to the next, from row to row, and from layout to layout."""
        width = len(self._forms[group].shape.widths) * self._max_rank
        return rows * width, width, self.batch.layouts.stride(0)

    def counts(self, group: str, rows: int) -> tuple[int, ...]:
        """And the numbers that belong to them: `plane_stride, planes_width, layout_stride, splits`."""
        return (*self._strides(group, rows), self._forms[group].config.splits)

    def _check(self, group: str, rows: int, columns: int, expected: int) -> None:
        if columns != expected:
            raise ValueError(f"{group}: {columns} columns; the layer has {expected}")
        if rows > len(self.batch.row_adapters):
            raise ValueError(f"{group}: {rows} rows; the step's buffer describes {len(self.batch.row_adapters)}")
        plane, _, _ = self._strides(group, rows)
        if self._forms[group].config.splits * plane > self._scratch.planes.numel():
            raise ValueError(
                f"{group}: {self._forms[group].config.splits} planes of {plane} elements; scratch has room for "
                f"{self._scratch.planes.numel()}"
            )
