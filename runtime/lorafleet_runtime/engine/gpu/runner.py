"""A step on a GPU's kernels: what they are told of it is laid out on the host and goes there in one copy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorafleet_kernels.gpu.lora import GroupForm, LoraStep, Scratch
from lorafleet_kernels.gpu.lora_batch import DESCRIPTION
from lorafleet_kernels.gpu.lora_config import GroupShape, StepShape, Variant, block_m, choose
from lorafleet_kernels.gpu.lora_host import AdapterPlace, StepSizes, describe, fill_step, most_items
from lorafleet_kernels.gpu.lora_host import Segment as Rows
from lorafleet_kernels.gpu.operations import TritonOperations
from lorafleet_kernels.gpu.step_buffer import batch_in
from lorafleet_kernels.native_lora import LORA_GROUPS
from lorafleet_runtime.engine.adapters.extras_step import ExtrasStep
from lorafleet_runtime.engine.gpu.graphs import Capture, Captures, DecodeGraph, Shared, sizes_up_to, variant_of
from lorafleet_runtime.engine.runner import Runner
from lorafleet_runtime.engine.step_plan import RunStep, attention_batch, flat_tokens, segments
from lorafleet_runtime.model.config import GROUPS, DecoderConfig
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.extras import extra_views
from lorafleet_runtime.model.lora import Layout, PackedAdapter, grain_for, vectors_in

LEAST_LAYOUTS = 256
"""Descriptions that there is room for at first, 4 KB each on a model of 32 layers; graphs are made anew for more."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A resident adapter; `rank`: the largest of its modules."""

    place: AdapterPlace
    rank: int


class GpuRunner(Runner):
    """A `Runner` for `TritonOperations`."""

    def __init__(self, model: Decoder, total_pages: int) -> None:
        super().__init__(model, total_pages)
        assert isinstance(model.ops, TritonOperations), "another runner serves other operations"
        self._ops = model.ops
        self._grain = grain_for(model.config, self.pool.shape[2])
        self._groups = group_shapes(model.config)
        self._adapters: dict[int, _Placed] = {}
        self._numbers_here: dict[int, tuple[int, int]] = {}  # by layout: the number of its description, and its rank
        shape = (LEAST_LAYOUTS, model.config.num_layers, len(LORA_GROUPS), DESCRIPTION)
        self._descriptions = torch.zeros(shape, dtype=torch.int32, device=self.device)
        self._graphs: dict[tuple[int, Variant | None], DecodeGraph] = {}
        self._graph_sizes: tuple[int, ...] = ()
        self._capture: Capture | None = None
        self._shared: Shared | None = None

    def use_graphs(self, rows: int, max_rank: int, capture: Capture | None = None) -> None:
        """Run decode steps of up to `rows` rows, and ranks of adapters up to `max_rank`, as graphs from now on; all are
        captured here."""
        shape, scratch = self._ops.heads(self.model.heads)
        self._capture = capture or Captures()
        self._shared = Shared(
            self.model, self.pool, self._kv, shape, scratch, self._groups, self._grain, self._ops.card.processors,
            max_rank,
        )  # fmt: skip
        self._graph_sizes = sizes_up_to(rows)
        for size in reversed(self._graph_sizes):  # the largest first: the others take its memory again
            for variant in (None, Variant.ROWS, Variant.TILES):
                self._graph(size, variant)

    def upload(self, handle: int, pages: list[int], packed: PackedAdapter) -> None:
        self._write(pages, packed)
        layout = packed.layout
        self._layout_of[handle] = self._numbers[layout.signature]
        if layout.adapts_projections:
            number, rank = self._described(self._layout_of[handle], layout)
            self._adapters[handle] = _Placed(AdapterPlace(number, np.asarray(pages, np.int32)), rank)
        if layout.extras is not None:
            self._extras[handle] = extra_views(vectors_in(self.pool, pages), layout.extras)

    def _unplace(self, handle: int) -> None:
        super()._unplace(handle)
        self._adapters.pop(handle, None)

    def _described(self, layout_number: int, layout: Layout) -> tuple[int, int]:
        """The number of a layout's description on the device, and the largest rank in it."""
        if layout_number not in self._numbers_here:
            number, rank = len(self._numbers_here), layout.largest_rank
            if number == len(self._descriptions):
                more = torch.zeros_like(self._descriptions)
                self._descriptions = torch.cat((self._descriptions, more))
                self._graphs.clear()  # they read the old ones
            described = describe(layout.layers, self._groups, self._grain, rank)
            self._descriptions[number].copy_(torch.from_numpy(described))
            self._numbers_here[layout_number] = number, rank
        return self._numbers_here[layout_number]

    def graph_rows(self, step: RunStep) -> int:
        extras = self._extras.keys() & {row.adapter for row in step.rows}
        rows = sum(len(row.tokens) for row in step.rows)
        all_decode = step.decodes == rows and all(row.samples for row in step.rows)
        if extras or not all_decode:
            return 0
        return next((size for size in self._graph_sizes if size >= rows), 0)

    def _compute(self, step: RunStep) -> Tensor:
        size = self.graph_rows(step)
        if not size:
            return super()._compute(step)
        adapted, placed = self._adapted(step)
        graph = self._graph(size, variant_of(step.decodes, len(adapted)))
        places = [each.place for each in placed]
        return graph.run(flat_tokens(step.rows, self._sampled), attention_batch(step), adapted, places)

    def _adapted(self, step: RunStep) -> tuple[list[Rows], list[_Placed]]:
        """The rows that have an adapter's deltas, and the adapters that they number."""
        found = [s for s in segments(step.rows) if s.adapter in self._adapters]
        handles = list(dict.fromkeys(s.adapter for s in found))
        index = {handle: at for at, handle in enumerate(handles)}
        return [(s.begin, s.end, index[s.adapter]) for s in found], [self._adapters[handle] for handle in handles]

    def _graph(self, size: int, variant: Variant | None) -> DecodeGraph:
        if (size, variant) not in self._graphs:
            assert self._shared is not None and self._capture is not None, "`use_graphs` makes them"
            self._graphs[size, variant] = DecodeGraph(self._shared, self._descriptions, size, variant, self._capture)
        return self._graphs[size, variant]

    def _forward(self, step: RunStep, extras: ExtrasStep | None) -> Tensor:
        attended = attention_batch(step)
        attend = self._ops.attention(self._kv, attended, self.model.heads, self.model.rope)
        lora = self._lora_step(step, len(attended.positions))
        hook = lora if extras is None else extras.before(lora)
        tokens = self._to_device(np.asarray(flat_tokens(step.rows, self._sampled), np.int64))
        return self.model.forward(tokens, attend, hook, extras)

    def _lora_step(self, step: RunStep, rows: int) -> LoraStep | None:
        adapted, placed = self._adapted(step)
        if not adapted:
            return None
        rank = max(each.rank for each in placed)
        shape = StepShape(rows, len(adapted), rank)
        m = block_m(rows, len(adapted), self._grain)
        pages = sum(len(each.place.pages) for each in placed)
        items = most_items(rows, len(adapted), m) if m > 1 else 0
        sizes = StepSizes(rows, items, len(placed), pages)
        buffer = np.empty(sizes.total, np.int32)
        fill_step(buffer, sizes, adapted, [each.place for each in placed], m)
        processors = self._ops.card.processors
        forms = {name: GroupForm(g, choose(shape, g, self._grain, processors)) for name, g in self._groups.items()}
        batch = batch_in(self._to_device(buffer), sizes, self._descriptions, self._grain)
        return LoraStep(self.pool, batch, forms, Scratch.of(forms, rows, rank, self.device), rank)

    def _to_device(self, numbers: np.ndarray[tuple[int, ...], np.dtype[np.int32] | np.dtype[np.int64]]) -> Tensor:
        host = torch.from_numpy(numbers)
        return host.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else host


def group_shapes(config: DecoderConfig) -> dict[str, GroupShape]:
    """The fused linear layers, as the kernels know them."""
    return {
        group: GroupShape(config.linear_shape(targets[0])[1], tuple(config.linear_shape(t)[0] for t in targets))
        for group, targets in GROUPS.items()
    }
