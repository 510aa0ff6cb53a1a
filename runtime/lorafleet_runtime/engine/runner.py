"""Plan -> tensors -> sampled tokens: the only file that feeds a device.

A plan is made where steps are scheduled and run where the device is, which may be another thread. What changes in both
places is told from one to the other by plans."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor

from lorafleet_kernels.batch import AttentionBatch
from lorafleet_kernels.native import NativeAttention
from lorafleet_kernels.native_lora import AdapterTable, TableTemplate
from lorafleet_kernels.operations import Attention
from lorafleet_runtime.core.batch import Batch
from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.engine.constrained.masks import Masks
from lorafleet_runtime.engine.constrained.requests import Constraints
from lorafleet_runtime.engine.deltas.extras_step import ExtrasStep
from lorafleet_runtime.engine.deltas.lora_stack import LoraStacks
from lorafleet_runtime.engine.deltas.lora_step import LoraStep
from lorafleet_runtime.engine.deltas.slora_step import SloraStep
from lorafleet_runtime.engine.pool import Pool, page_bytes
from lorafleet_runtime.engine.sampling.choosing import Choice, choose
from lorafleet_runtime.engine.sampling.sampler import Row, Sampled, TokensOf, tokens_of
from lorafleet_runtime.engine.step_plan import (
    Plan,
    RunStep,
    attention_batch,
    flat_tokens,
    planned_rows,
    sampled_positions,
    sampling_rows,
    segments,
)
from lorafleet_runtime.engine.transfers import on_device
from lorafleet_runtime.model.collectives import Partition
from lorafleet_runtime.model.decoder import Decoder, LoraHook
from lorafleet_runtime.model.extras import ExtraViews, extra_views
from lorafleet_runtime.model.lora import GroupView, Layout, PackedAdapter, matrices, vectors_in
from lorafleet_runtime.model.threads import on_all_threads

STACK_BYTES = 256 * 2**20
"""Bound of the copies that let adapters of one layout be multiplied together; beyond it they go one by one."""

PROBED_PAGES = 16
NOT_HERE = torch.empty(0)
"""In place of a golden copy that is on disk."""


class Runner:
    """The pool's memory, the model, and one step over them."""

    def __init__(
        self, model: Decoder, total_pages: int, partition: Partition = "replicated", kv: torch.dtype | None = None
    ) -> None:
        """`kv`: of keys and values in the pool, the model's own where there is none. `pool` is the same memory as it is
        for adapters."""
        config = model.config
        self.model = model
        self.constraints = Constraints()
        self.device = model.embedding.device
        pool = Pool.of(config, total_pages, model.dtype, kv or model.dtype, self.device)
        self.pool, self._kv, self._scales = pool.weights, pool.kv, pool.scales
        self.page_bytes = page_bytes(config, kv or model.dtype)
        self._slora = partition == "slora" and model.collectives is not None
        self._on_tables = model.ops.native and not self._slora
        self._views: dict[int, tuple[Mapping[str, GroupView], ...]] = {}
        self._tables: dict[int, AdapterTable] = {}  # instead of views, for native operations
        self._templates: dict[int, TableTemplate] = {}  # by the layout's number
        self._extras: dict[int, ExtraViews] = {}  # of the adapters that have any
        self._layout_of: dict[int, int] = {}  # numbers of layouts
        self._stacks = LoraStacks(STACK_BYTES if self.device.type == "cpu" else 0)
        self._sampled: list[int] = []  # by the last step
        self._tokens_of: TokensOf = tokens_of
        # What follows belongs to whoever makes plans, the above to whoever runs them.
        self._packed: dict[int, PackedAdapter] = {}
        self._numbers: dict[Hashable, int] = {}
        self._layouts: dict[Hashable, Layout] = {}
        self._placed: dict[int, Adapter] = {}  # as the last plan leaves it
        self._leaving: list[int] = []

    def register(self, adapter: Adapter, packed: PackedAdapter) -> int:
        """Keep an adapter's golden copy; its pages are filled when a batch names it in `uploads`. Returns the number of
        its layout."""
        number = self._numbers.setdefault(packed.layout.signature, len(self._numbers))
        layout = self._layouts.setdefault(packed.layout.identity, packed.layout)
        self._packed[adapter.handle] = PackedAdapter(layout, packed.blob)  # thousands of adapters share a layout
        return number

    def take_back(self, adapter: Adapter) -> Tensor:
        """Give up an adapter's golden copy, which is returned, until `give` brings it back."""
        packed = self._packed[adapter.handle]
        self._packed[adapter.handle] = PackedAdapter(packed.layout, NOT_HERE)
        return packed.blob

    def give(self, adapter: Adapter, blob: Tensor) -> None:
        """The golden copy that `take_back` returned, or an equal one."""
        self._packed[adapter.handle] = PackedAdapter(self._packed[adapter.handle].layout, blob)

    def close(self) -> None:
        """End what belongs to it outside this process: nothing, for one rank."""

    def graph_rows(self, step: RunStep) -> int:
        """Rows of the captured graph that a step runs in, 0 where it runs in none."""
        return 0

    def page_seconds(self) -> float:
        """What copying one page of an adapter takes, measured on the first pages of a pool that nobody uses yet."""
        count = min(PROBED_PAGES, self.pool.shape[1])
        pages = torch.arange(count, device=self.device)
        blob = torch.zeros(self.pool.shape[0], count, self.pool.shape[2], dtype=self.pool.dtype)
        for _ in range(2):  # the first time the memory itself is taken
            begun = time.perf_counter()
            self.pool.index_copy_(1, pages, blob.to(self.device))
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        return (time.perf_counter() - begun) / count

    def forget(self, adapter: Adapter) -> None:
        del self._packed[adapter.handle]
        self._placed.pop(adapter.handle, None)
        self._leaving.append(adapter.handle)

    def plan(self, batch: Batch, before: Batch | None = None) -> Plan:
        """A batch as it is now. `before` was planned last, and has not been committed."""
        unplaced, self._leaving = self._leaving, []
        for adapter in batch.uploads:
            assert self._packed[adapter.handle].blob is not NOT_HERE, f"adapter {adapter.id} is on disk"
        if batch.uploads:
            unplaced += [handle for handle, placed in self._placed.items() if not placed.resident]
            for handle in unplaced:
                self._placed.pop(handle, None)
            self._placed |= {adapter.handle: adapter for adapter in batch.uploads}
        uploads = [(adapter.handle, list(adapter.pages)) for adapter in batch.uploads]
        constrained = [row.sequence for row in batch.sampling if row.sequence.sampling.constraint is not None]
        return Plan(
            RunStep(planned_rows(batch, before), uploads, unplaced),
            tuple(self._packed[handle] for handle, _ in uploads),
            sampling_rows(batch),
            tuple((sequence.request_id, sequence.output_tokens) for sequence in constrained),
        )

    def plan_again(self, step: RunStep) -> Plan:
        """Another rank's step with this one's part of the weights; it samples nothing, and is told whom to unplace."""
        self._leaving.clear()
        return Plan(step, tuple(self._packed[handle] for handle, _ in step.uploads))

    @property
    def launches(self) -> bool:
        """Whether `launch` returns before the step has been computed."""
        return False

    def launch(self, plan: Plan) -> Callable[[], list[Sampled]]:
        """One step. The result waits for `PlannedRow.sampled` samples of each row, in row order."""
        samples = self.choose(plan).sent()()
        self._sampled = [each.token_id for each in samples]
        return lambda: samples

    @torch.inference_mode()
    def choose(self, plan: Plan) -> Choice:
        """One step, with its samples where they were chosen."""
        self.constraints.prepare(plan.constrained)
        logits = self.logits(plan)
        bound = [(row.request_id, row.position) for row in plan.sampling if row.sampling.constraint is not None]
        masks = self.constraints.masks(bound)
        return self.sampled(logits, plan.sampling, masks)

    def sampled(self, logits: Tensor, rows: Sequence[Row], masks: Masks) -> Choice:
        """A sample for every row of `logits [rows, V]`."""
        return choose(logits, rows, masks, self.model.ops, self._tokens_of)

    @torch.inference_mode()
    def logits(self, plan: Plan) -> Tensor:
        """The step without its sampling: `[tokens to sample, vocabulary]`."""
        step = plan.step
        for handle in step.unplaced:
            self._unplace(handle)
        for (handle, pages), packed in zip(step.uploads, plan.weights, strict=True):
            self.upload(handle, pages, packed)
        return self._compute(step)

    def _compute(self, step: RunStep) -> Tensor:
        """The logits of a step whose adapters are in their places."""
        extras = self._extras_of(step)
        hidden = self._forward(step, extras)
        last = sampled_positions(step.rows)
        if not last:
            return hidden.new_empty(0, self.model.config.vocab_size)
        return self.model.logits(self._sampled_from(hidden, last), extras)

    def _sampled_from(self, hidden: Tensor, last: list[int]) -> Tensor:
        """The rows `last` of `hidden [T, H]`, which are in order."""
        return hidden if len(last) == len(hidden) else hidden[on_device(last, torch.int64, self.device)]

    def _unplace(self, handle: int) -> None:
        for known in (self._views, self._tables, self._extras, self._layout_of):
            known.pop(handle, None)

    def upload(self, handle: int, pages: list[int], packed: PackedAdapter) -> None:
        """Copy an adapter's weights into its pages, in all layers."""
        self._write(pages, packed)
        vectors = vectors_in(self.pool, pages)
        number = self._layout_of[handle] = self._numbers[packed.layout.signature]
        if packed.layout.adapts_projections and self._on_tables:
            if number not in self._templates:
                self._templates[number] = TableTemplate(packed.layout.layers, self.pool.element_size())
            self._tables[handle] = self._templates[number].at(vectors)
        elif packed.layout.adapts_projections:
            self._views[handle] = matrices(vectors, packed.layout)
        if packed.layout.extras is not None:
            self._extras[handle] = extra_views(vectors, packed.layout.extras)

    def _write(self, pages: list[int], packed: PackedAdapter) -> None:
        self.pool.index_copy_(1, on_device(pages, torch.int64, self.device), packed.blob.to(self.device))

    def _extras_of(self, step: RunStep) -> ExtrasStep | None:
        handles = [row.adapter for row in step.rows]
        if not self._extras or self._extras.keys().isdisjoint(handles):
            return None
        sampling = [row.adapter for row in step.rows for _ in range(row.sampled)]
        return ExtrasStep(segments(step.rows), sampling, self._extras, self.model.config.rms_norm_eps)

    def _attention(self, batch: AttentionBatch) -> Attention:
        return self.model.ops.attention(self._kv, batch, self.model.heads, self.model.rope, self._scales)

    def _forward(self, step: RunStep, extras: ExtrasStep | None) -> Tensor:
        attend = self._attention(attention_batch(step))
        lora = self._lora(step)
        hook = lora if extras is None else extras.before(lora)
        if not isinstance(attend, NativeAttention):  # which asks for its threads itself
            attend = on_all_threads(attend)
        tokens = on_device(flat_tokens(step.rows, self._sampled), torch.int64, self.device)
        return self.model.forward(tokens, attend, hook, extras)

    def _lora(self, step: RunStep) -> LoraHook | None:
        """The deltas of the batch's adapters; None where there are none."""
        known = self._tables if self._on_tables else self._views
        adapted = [s for s in segments(step.rows) if s.adapter in known]
        if not adapted:
            return None
        if self._on_tables:
            return self.model.ops.lora([(s.begin, s.end, self._tables[s.adapter]) for s in adapted])
        if self._slora and self.model.collectives is not None:
            return SloraStep(adapted, self._views, self.model.collectives)
        return LoraStep(adapted, step.decodes, self._views, self._layout_of, self._stacks)
