"""Batch -> tensors -> sampled tokens: the only file that feeds a device."""

from __future__ import annotations

import itertools
import time
from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from lorafleet_kernels.batch import AttentionBatch
from lorafleet_kernels.native import NativeAttention
from lorafleet_kernels.native_lora import AdapterTable, TableTemplate
from lorafleet_runtime.core.batch import Batch, segments
from lorafleet_runtime.core.pages import PAGE_TOKENS, pages_for_tokens
from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.engine.choosing import choose
from lorafleet_runtime.engine.constraints import Constraints
from lorafleet_runtime.engine.extras_step import ExtrasStep
from lorafleet_runtime.engine.lora_stack import LoraStacks
from lorafleet_runtime.engine.lora_step import LoraStep
from lorafleet_runtime.engine.sampling import Sampled
from lorafleet_runtime.engine.slora_step import SloraStep
from lorafleet_runtime.model.collectives import Partition
from lorafleet_runtime.model.decoder import Decoder, LoraHook
from lorafleet_runtime.model.extras import ExtraViews, extra_views
from lorafleet_runtime.model.lora import GroupView, Layout, PackedAdapter, matrices, vectors_in
from lorafleet_runtime.model.on_demand import zeros_on_demand
from lorafleet_runtime.model.threads import on_all_threads

STACK_BYTES = 256 * 2**20
"""Bound of the copies that let adapters of one layout be multiplied together; beyond it they go one by one."""

PROBED_PAGES = 16
NOT_HERE = torch.empty(0)
"""In place of a golden copy that is on disk."""


def page_elements(kv_dim: int) -> int:
    """Elements of one page in one layer: keys and values of 16 tokens."""
    return PAGE_TOKENS * 2 * kv_dim


class Runner:
    """The pool's memory, the model, and one step over them."""

    def __init__(self, model: Decoder, total_pages: int, partition: Partition = "replicated") -> None:
        config = model.config
        self.model = model
        self.constraints = Constraints()
        self._page_elements = page_elements(config.kv_dim)
        self.pool = zeros_on_demand((config.num_layers, total_pages, self._page_elements), model.dtype)
        self._kv = self.pool.view(config.num_layers, total_pages, 2, PAGE_TOKENS, config.num_kv_heads, config.head_dim)
        self._placed: dict[int, Adapter] = {}  # what follows is of these: hundreds of small objects each
        self._slora = partition == "slora" and model.collectives is not None
        self._on_tables = model.ops.native and not self._slora
        self._views: dict[int, tuple[Mapping[str, GroupView], ...]] = {}
        self._tables: dict[int, AdapterTable] = {}  # instead of views, for native operations
        self._templates: dict[int, TableTemplate] = {}  # by the layout's number
        self._extras: dict[int, ExtraViews] = {}  # of the adapters that have any
        self._packed: dict[int, PackedAdapter] = {}
        self._numbers: dict[Hashable, int] = {}
        self._layouts: dict[Hashable, Layout] = {}
        self._stacks = LoraStacks(STACK_BYTES)

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

    def page_seconds(self) -> float:
        """What copying one page of an adapter takes, measured on the first pages of a pool that nobody uses yet."""
        count = min(PROBED_PAGES, self.pool.shape[1])
        pages, blob = torch.arange(count), torch.zeros_like(self.pool[:, :count])
        for _ in range(2):  # the first time the memory itself is taken
            begun = time.perf_counter()
            self.pool.index_copy_(1, pages, blob)
        return (time.perf_counter() - begun) / count

    def forget(self, adapter: Adapter) -> None:
        del self._packed[adapter.handle]
        self._unplace(adapter.handle)

    def _unplace(self, handle: int) -> None:
        self._placed.pop(handle, None)
        self._views.pop(handle, None)
        self._tables.pop(handle, None)
        self._extras.pop(handle, None)

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[Sampled]:
        """One step. Returns one sample per row that samples, in row order."""
        rows = [row for row in batch.rows if row.samples]
        constrained = [row.sequence for row in rows if row.sequence.sampling.constraint is not None]
        self.constraints.prepare((sequence.request_id, sequence.output_tokens) for sequence in constrained)
        logits = self.logits(batch)
        masks = self.constraints.masks([sequence.request_id for sequence in constrained])
        return choose(logits, rows, masks, self.model.ops.argmax)

    @torch.inference_mode()
    def logits(self, batch: Batch) -> Tensor:
        """The step without its sampling: `[rows that sample, vocabulary]`."""
        for adapter in batch.uploads:
            self._upload(adapter)
        extras = self._extras_of(batch)
        hidden = self._forward(batch, extras)
        ends = itertools.accumulate(row.count for row in batch.rows)
        last = [end - 1 for row, end in zip(batch.rows, ends, strict=True) if row.samples]
        if not last:
            return hidden.new_empty(0, self.model.config.vocab_size)
        return self.model.logits(hidden if len(last) == len(hidden) else hidden[torch.tensor(last)], extras)

    def _extras_of(self, batch: Batch) -> ExtrasStep | None:
        handles = [row.sequence.adapter.handle if row.sequence.adapter else -1 for row in batch.rows]
        if not self._extras or self._extras.keys().isdisjoint(handles):
            return None
        sampling = [handle for handle, row in zip(handles, batch.rows, strict=True) if row.samples]
        return ExtrasStep(segments(batch.rows), sampling, self._extras, self.model.config.rms_norm_eps)

    def _forward(self, batch: Batch, extras: ExtrasStep | None) -> Tensor:
        tokens: list[int] = []
        positions: list[int] = []
        for row in batch.rows:
            stop = row.start + row.count
            tokens += row.sequence.tokens[row.start : stop]
            positions += range(row.start, stop)
        attended = AttentionBatch(
            positions,
            [row.count for row in batch.rows],
            [row.sequence.pages[: pages_for_tokens(row.start + row.count)] for row in batch.rows],
            batch.decodes,
        )
        attend = self.model.ops.attention(self._kv, attended, self.model.heads, self.model.rope)
        lora = self._lora(batch)
        hook = lora if extras is None else extras.before(lora)
        if not isinstance(attend, NativeAttention):  # which asks for its threads itself
            attend = on_all_threads(attend)
        return self.model.forward(torch.tensor(tokens), attend, hook, extras)

    def _lora(self, batch: Batch) -> LoraHook | None:
        """The deltas of the batch's adapters; None where there are none."""
        known = self._tables if self._on_tables else self._views
        adapted = [s for s in segments(batch.rows) if s.adapter is not None and s.adapter.handle in known]
        if not adapted:
            return None
        if self._on_tables:
            tables = self._tables
            return self.model.ops.lora([(s.begin, s.end, tables[s.adapter.handle]) for s in adapted if s.adapter])
        if self._slora and self.model.collectives is not None:
            return SloraStep(adapted, self._views, self.model.collectives)
        return LoraStep(adapted, batch.decodes, self._views, self._stacks)

    def _upload(self, adapter: Adapter) -> None:
        packed = self._packed[adapter.handle]
        assert packed.blob is not NOT_HERE, f"adapter {adapter.id} is on disk"
        for handle in [handle for handle, placed in self._placed.items() if not placed.resident]:
            self._unplace(handle)
        self._placed[adapter.handle] = adapter
        self.pool.index_copy_(1, torch.tensor(adapter.pages), packed.blob)
        vectors = vectors_in(self.pool, adapter.pages)
        if packed.layout.adapts_projections and self._on_tables:
            if adapter.layout not in self._templates:
                self._templates[adapter.layout] = TableTemplate(packed.layout.layers, self.pool.element_size())
            self._tables[adapter.handle] = self._templates[adapter.layout].at(vectors)
        elif packed.layout.adapts_projections:
            self._views[adapter.handle] = matrices(vectors, packed.layout)
        if packed.layout.extras is not None:
            self._extras[adapter.handle] = extra_views(vectors, packed.layout.extras)
