"""A step on a GPU's kernels: what they are told of it is laid out on the host and goes there in one copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lorafleet_kernels.batch import AttentionBatch
from lorafleet_kernels.gpu.attention.plan import DoesNotFit
from lorafleet_kernels.gpu.forms.lora import LEAST_TILE, GroupShape, StepShape
from lorafleet_kernels.gpu.forms.weight_types import as_fp8
from lorafleet_kernels.gpu.lora.batch import DESCRIPTION
from lorafleet_kernels.gpu.lora.host import AdapterPlace, StepSizes, describe, fill_step, most_items
from lorafleet_kernels.gpu.lora.host import Segment as Rows
from lorafleet_kernels.gpu.lora.step import GroupForm, LoraStep, Scratch
from lorafleet_kernels.gpu.lora.step_buffer import batch_in
from lorafleet_kernels.gpu.operations import TritonOperations
from lorafleet_kernels.gpu.tokens import known_tokens, stand_in
from lorafleet_kernels.native_lora import LORA_GROUPS
from lorafleet_runtime.engine.deltas.extras_step import ExtrasStep
from lorafleet_runtime.engine.gpu.drawing import GpuTokens
from lorafleet_runtime.engine.gpu.graphs import Capture, Captures, Shared, Sizes, StepGraphs
from lorafleet_runtime.engine.gpu.page_copies import PageCopies
from lorafleet_runtime.engine.runner import Runner
from lorafleet_runtime.engine.sampling.sampler import Sampled
from lorafleet_runtime.engine.step_plan import Plan, RunStep, attention_batch, segments
from lorafleet_runtime.engine.transfers import Sending, on_device
from lorafleet_runtime.model.config import GROUPS, DecoderConfig
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.extras import extra_views
from lorafleet_runtime.model.lora import Layout, PackedAdapter, grain_for, vectors_in

LEAST_SAMPLES = 1024
LEAST_LAYOUTS = 256
"""Descriptions that there is room for at first, 4 KB each on a model of 32 layers; graphs are made anew for more."""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A resident adapter; `rank`: the largest of its modules."""

    place: AdapterPlace
    rank: int


class GpuRunner(Runner):
    """A `Runner` for `TritonOperations`. On CUDA nothing here waits for the device but who reads the samples."""

    def __init__(
        self, model: Decoder, total_pages: int, kv: torch.dtype | None = None, *, fp8_adapters: bool = False
    ) -> None:
        super().__init__(model, total_pages, kv=kv)
        assert isinstance(model.ops, TritonOperations), "another runner serves other operations"
        self._ops = model.ops
        self._weights = as_fp8(self.pool, self._ops.card.capability) if fp8_adapters else self.pool
        self._grain = grain_for(model.config, self.pool.shape[2])
        self._groups = group_shapes(model.config)
        self.forms = self._ops.lora_forms(self._groups, self._grain, self._weights.dtype)
        self._adapters: dict[int, _Placed] = {}
        self._pages_of: dict[int, list[int]] = {}
        self._copies = PageCopies(self.pool.view(torch.uint8) if fp8_adapters else self.pool)
        self._before = RunStep([], [], [])
        """The step that may be under way."""
        self._numbers_here: dict[int, tuple[int, int]] = {}  # by layout: the number of its description, and its rank
        shape = (LEAST_LAYOUTS, model.config.num_layers, len(LORA_GROUPS), DESCRIPTION)
        self._descriptions = torch.zeros(shape, dtype=torch.int32, device=self.device)
        self._tokens = torch.zeros(LEAST_SAMPLES, dtype=torch.int32, device=self.device)
        """That the step before sampled."""
        self._tokens_of = GpuTokens(self._ops)
        self._graphs = StepGraphs.none()

    @property
    def launches(self) -> bool:
        return True

    def launch(self, plan: Plan) -> Callable[[], list[Sampled]]:
        choice = self.choose(plan)
        count = len(choice.tokens)
        if count > len(self._tokens):
            self._tokens = self._tokens.new_zeros(2 * count)
            self._graphs.forget()  # they read the old ones
        self._tokens[:count].copy_(choice.tokens)
        return choice.sent()

    def use_graphs(self, rows: int, max_rank: int, capture: Capture | None = None) -> None:
        """Run decode steps of up to `rows` rows, and ranks of adapters up to `max_rank`, as graphs from now on; all are
        captured here."""
        shape, scratch = self._ops.heads(self.model.heads, self._kv.dtype)
        largest = Sizes.of(rows, self.pool.shape[1], LEAST_TILE, shape.cut).total

        def shared() -> Shared:
            numbers = torch.zeros(largest, dtype=torch.int32, device=self.device)
            return Shared(
                self.model, self._weights, self._kv, self._scales, self._tokens, numbers, Sending(largest, self.device),
                self._descriptions, shape, scratch, self._groups, self._grain, self.forms, max_rank,
            )  # fmt: skip

        self._graphs = StepGraphs(shared, rows, capture or Captures())
        self._graphs.capture_all()

    @torch.inference_mode()
    def logits(self, plan: Plan) -> Tensor:
        """As `Runner.logits`. Adapters are copied beside the step before this one, but into pages that it reads."""
        read_now = self._read_by(self._before) if plan.step.uploads else set()
        for handle in plan.step.unplaced:
            self._unplace(handle)
        for (handle, pages), packed in zip(plan.step.uploads, plan.weights, strict=True):
            self._copies.write(pages, packed.blob, read_now=not read_now.isdisjoint(pages))
            self._place(handle, pages, packed.layout)
        self._copies.join()
        self._before = plan.step
        return self._compute(plan.step)

    def upload(self, handle: int, pages: list[int], packed: PackedAdapter) -> None:
        self._copies.write(pages, packed.blob, read_now=True)
        self._place(handle, pages, packed.layout)
        self._copies.join()

    def _place(self, handle: int, pages: list[int], layout: Layout) -> None:
        """Where an adapter lies, for the kernels."""
        self._layout_of[handle] = self._numbers[layout.signature]
        self._pages_of[handle] = pages
        if layout.adapts_projections:
            number, rank = self._described(self._layout_of[handle], layout)
            self._adapters[handle] = _Placed(AdapterPlace(number, np.asarray(pages, np.int32)), rank)
        if layout.extras is not None:
            self._copies.join()  # views of scattered pages are copies
            self._extras[handle] = extra_views(vectors_in(self.pool, pages), layout.extras)

    def _read_by(self, step: RunStep) -> set[int]:
        """The pages that a step reads or writes."""
        pages = {page for row in step.rows for page in row.pages}
        for handle in {row.adapter for row in step.rows}:
            pages.update(self._pages_of.get(handle, ()))
        return pages

    def _unplace(self, handle: int) -> None:
        super()._unplace(handle)
        self._adapters.pop(handle, None)
        self._pages_of.pop(handle, None)

    def _described(self, layout_number: int, layout: Layout) -> tuple[int, int]:
        """The number of a layout's description on the device, and the largest rank in it."""
        if layout_number not in self._numbers_here:
            number, rank = len(self._numbers_here), layout.largest_rank
            if number == len(self._descriptions):
                more = torch.zeros_like(self._descriptions)
                self._descriptions = torch.cat((self._descriptions, more))
                self._graphs.forget()  # they read the old ones
            described = describe(layout.layers, self._groups, self._grain, rank)
            self._descriptions[number].copy_(on_device(described, torch.int32, self.device))
            self._numbers_here[layout_number] = number, rank
        return self._numbers_here[layout_number]

    def graph_rows(self, step: RunStep) -> int:
        extras = self._extras.keys() & {row.adapter for row in step.rows}
        rows = sum(len(row.tokens) for row in step.rows)
        all_decode = step.decodes == rows and all(row.samples for row in step.rows)
        return 0 if extras or not all_decode else self._graphs.rows_of(rows)

    def _compute(self, step: RunStep) -> Tensor:
        if not self.graph_rows(step):
            return super()._compute(step)
        adapted, placed = self._adapted(step)
        graph = self._graphs.of(step.decodes, len(adapted))
        try:
            return graph.run(standing_tokens(step), attention_batch(step), adapted, [each.place for each in placed])
        except DoesNotFit:  # more references to shared pages than there are pages
            return super()._compute(step)

    def _adapted(self, step: RunStep) -> tuple[list[Rows], list[_Placed]]:
        """The rows that have an adapter's deltas, and the adapters that they number."""
        found = [s for s in segments(step.rows) if s.adapter in self._adapters]
        handles = list(dict.fromkeys(s.adapter for s in found))
        index = {handle: at for at, handle in enumerate(handles)}
        return [(s.begin, s.end, index[s.adapter]) for s in found], [self._adapters[handle] for handle in handles]

    def _forward(self, step: RunStep, extras: ExtrasStep | None) -> Tensor:
        attended = attention_batch(step)
        attend = self._attention(attended)
        lora = self._lora_step(step, len(attended.positions))
        hook = lora if extras is None else extras.before(lora)
        tokens = known_tokens(on_device(standing_tokens(step), torch.int32, self.device), self._tokens)
        return self.model.forward(tokens, attend, hook, extras)

    def _lora_step(self, step: RunStep, rows: int) -> LoraStep | None:
        adapted, placed = self._adapted(step)
        if not adapted:
            return None
        shape = StepShape(rows, len(adapted), max(each.rank for each in placed))
        return self.lora_of(shape, adapted, [each.place for each in placed])

    def alone(self, batch: AttentionBatch, lora: LoraStep | None, sampled: int) -> Tensor:
        """A step of nobody's: any tokens, and the logits of the last `sampled` of them."""
        attend = self._attention(batch)
        tokens = on_device([0] * len(batch.positions), torch.int64, self.device)
        return self.model.logits(self.model.forward(tokens, attend, lora)[-sampled:])

    def lora_of(self, shape: StepShape, adapted: Sequence[Rows], places: Sequence[AdapterPlace]) -> LoraStep:
        """In the form for that shape, over the rows that have an adapter."""
        chosen = self.forms(shape)
        items = most_items(shape.rows, shape.segments, chosen.m) if chosen.m > 1 else 0
        sizes = StepSizes(shape.rows, items, len(places), sum(len(place.pages) for place in places))
        buffer = np.empty(sizes.total, np.int32)
        fill_step(buffer, sizes, adapted, places, chosen.m)
        forms = {name: GroupForm(g, chosen.configs[name]) for name, g in self._groups.items()}
        batch = batch_in(on_device(buffer, torch.int32, self.device), sizes, self._descriptions, self._grain)
        scratch = Scratch.of(forms, shape.rows, shape.max_rank, self.device)
        return LoraStep(
            self._weights, batch, forms, scratch, shape.max_rank, dependent=self._ops.dependent
        )


def standing_tokens(step: RunStep) -> list[int]:
    """The step's tokens, as `known_tokens` takes them."""
    tokens: list[int] = []
    for row in step.rows:
        tokens += row.tokens
        if row.source >= 0:
            tokens[-1] = stand_in(row.source)
    return tokens


def group_shapes(config: DecoderConfig) -> dict[str, GroupShape]:
    """The fused linear layers, as the kernels know them."""
    return {
        group: GroupShape(config.linear_shape(targets[0])[1], tuple(config.linear_shape(t)[0] for t in targets))
        for group, targets in GROUPS.items()
    }
