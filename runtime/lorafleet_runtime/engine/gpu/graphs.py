"""Decode steps of a GPU as captured graphs: one replay in place of hundreds of launches.

A graph reads and writes the same memory in every step, so what a step is goes into buffers whose sizes are bounds: a
step of B rows runs in the graph of the next larger size, and the rows beyond are told that they are none. Per size
there are three: without adapters, and with them by rows or by tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lorafleet_kernels.batch import AttentionBatch
from lorafleet_kernels.gpu.attention.plan import Bounds, Cut, DevicePlan, plan_attention
from lorafleet_kernels.gpu.attention.step import AttentionShape, DecodeScratch, TritonAttention
from lorafleet_kernels.gpu.beside import Beside
from lorafleet_kernels.gpu.forms.lora import GroupShape, StepShape, Variant, variant_for
from lorafleet_kernels.gpu.forms.step import ChooseForms
from lorafleet_kernels.gpu.layers import FUSED_ROWS
from lorafleet_kernels.gpu.lora.host import AdapterPlace, StepSizes, fill_step, most_items
from lorafleet_kernels.gpu.lora.host import Segment as Rows
from lorafleet_kernels.gpu.lora.step import GroupForm, LoraStep, Scratch
from lorafleet_kernels.gpu.lora.step_buffer import batch_in
from lorafleet_kernels.gpu.tokens import known_tokens
from lorafleet_runtime.engine.transfers import Sending
from lorafleet_runtime.model.decoder import Decoder

WARM_UP = 2
"""Runs before a capture: kernels are compiled, and libraries take their workspaces, outside of it."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all graphs of one runner share, as only one runs at a time. `kv [layers, P, 2, 16, kv_heads, D]` and `pool`,
    as adapters' weights lie in it, are the same memory; `scales`: of keys and values of 8 bits; `sampled`, int32, are
    the tokens of the step before; `numbers`, int32, say what a step is, and come through `sending`; `descriptions` of
    layouts."""

    model: Decoder
    pool: Tensor
    kv: Tensor
    scales: Tensor | None
    sampled: Tensor
    numbers: Tensor
    sending: Sending
    descriptions: Tensor
    shape: AttentionShape
    decode: DecodeScratch
    groups: Mapping[str, GroupShape]
    grain: int
    forms: ChooseForms
    max_rank: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the numbers that tell a graph of up to `rows` rows what a step is: bounds of its parts."""

    attention: Bounds
    lora: StepSizes
    cut: Cut

    @classmethod
    def of(cls, rows: int, pages: int, m: int, cut: Cut) -> Sizes:
        """`m`: rows of a work item; `pages`: of the pool."""
        items = most_items(rows, rows, m) if m > 1 else 0
        return cls(Bounds(rows, rows, 0, pages + rows), StepSizes(rows, items, rows, pages), cut)

    @property
    def parts(self) -> tuple[slice, slice, slice]:
        """Of the numbers: attention's, LoRA's, and the tokens."""
        first = self.attention.length(self.cut)
        second = first + self.lora.total
        return slice(0, first), slice(first, second), slice(second, self.total)

    @property
    def total(self) -> int:
        return self.attention.length(self.cut) + self.lora.total + self.attention.tokens


class Replay(Protocol):
    """Does again what a function did, over what now lies in the memory that it read."""

    def __call__(self) -> Tensor:
        """The function's result, in the same memory every time."""
        ...


Capture = Callable[[Callable[[], Tensor]], Replay]


def sizes_up_to(rows: int) -> tuple[int, ...]:
    """Numbers of rows that have a graph: powers of two up to 8, multiples of 8 to 64, of 16 beyond, and `rows`."""
    usual = [1, 2, 4, *range(8, 65, 8), *range(80, rows + 1, 16)]
    return (*(size for size in usual if size < rows), rows)


class DecodeGraph:
    """Steps of up to `rows` sequences, one token each, by one variant of the LoRA kernels or without adapters."""

    def __init__(self, shared: Shared, rows: int, variant: Variant | None, capture: Capture) -> None:
        self._forms: dict[str, GroupForm] = {}
        self._m = 1
        if variant is not None:
            # Tiles serve segments of four rows and more, so there are few of them; rows serve any number.
            segments = max(1, rows // 4) if variant is Variant.TILES else rows
            chosen = shared.forms(StepShape(rows, segments, shared.max_rank))
            self._forms = {name: GroupForm(shared.groups[name], form) for name, form in chosen.configs.items()}
            self._m = chosen.m
        self._sizes = Sizes.of(rows, shared.pool.shape[1], self._m, shared.shape.cut)
        self._sending = shared.sending
        self._numbers = shared.numbers[: self._sizes.total]
        self._describe([], AttentionBatch([], [], [], 0), [], [])  # nothing, for the capture
        self._replay = capture(self._function(shared))

    def run(
        self, tokens: Sequence[int], batch: AttentionBatch, segments: Sequence[Rows], places: Sequence[AdapterPlace]
    ) -> Tensor:
        """The logits `[rows of the step, V]`, which the next run overwrites. `tokens` as `known_tokens` takes them.
        Raises DoesNotFit."""
        self._describe(tokens, batch, segments, places)
        return self._replay()[: len(tokens)]

    def _describe(
        self, tokens: Sequence[int], batch: AttentionBatch, segments: Sequence[Rows], places: Sequence[AdapterPlace]
    ) -> None:
        memory = self._sending.next()
        attention, lora, ids = (memory[part] for part in self._sizes.parts)
        plan_attention(batch, self._sizes.cut).pack(attention, self._sizes.attention, self._sizes.cut)
        if self._forms:
            fill_step(lora, self._sizes.lora, segments, places, self._m)
        ids[: len(tokens)] = tokens
        ids[len(tokens) :] = 0
        self._sending.send(self._numbers)

    def _function(self, shared: Shared) -> Callable[[], Tensor]:
        attention, described, tokens = (self._numbers[part] for part in self._sizes.parts)
        plan = DevicePlan.view(attention, self._sizes.attention, self._sizes.cut)
        attend = TritonAttention(shared.kv, plan, shared.shape, shared.model.rope, shared.decode, shared.scales)
        lora: LoraStep | None = None
        if self._forms:
            batch = batch_in(described, self._sizes.lora, shared.descriptions, shared.grain)
            scratch = Scratch.of(self._forms, len(tokens), shared.max_rank, shared.pool.device)
            beside = Beside(shared.pool.device) if shared.pool.is_cuda and len(tokens) <= FUSED_ROWS else None
            dependent = shared.shape.dependent
            lora = LoraStep(shared.pool, batch, self._forms, scratch, shared.max_rank, beside, dependent)

        def step() -> Tensor:
            known = known_tokens(tokens, shared.sampled)
            return shared.model.logits(shared.model.forward(known, attend, lora))

        return step


class Captures:
    """CUDA graphs of one device, which share what memory they need between their launches: none runs beside another,
    and a result is used before the next replay."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], Tensor]) -> Replay:
        """A function as a graph. It must not look at a result, nor copy from the host."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Threads that read adapters lock memory meanwhile, which no capture of theirs forbids.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = step()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class StepGraphs:
    """The graphs of one runner, by rows and variant."""

    def __init__(self, shared: Callable[[], Shared], rows: int, capture: Capture | None) -> None:
        """`shared` makes what they share, anew after `forget`; `rows`: the most that a step may have, 0 for none."""
        self.rows = rows
        self._make_shared = shared
        self._capture = capture
        self._sizes = sizes_up_to(rows) if rows else ()
        self._shared: Shared | None = None
        self._graphs: dict[tuple[int, Variant | None], DecodeGraph] = {}

    @classmethod
    def none(cls) -> StepGraphs:
        """Of a runner that has none."""

        def nothing() -> Shared:
            raise RuntimeError("graphs were asked for where there are none: `use_graphs` makes them")

        return cls(nothing, 0, None)

    def capture_all(self) -> None:
        """The largest first: the others take its memory again. Without a rank, those without adapters."""
        self._shared = self._shared or self._make_shared()
        variants = (None, *Variant) if self._shared.max_rank else (None,)
        for size in reversed(self._sizes):
            for variant in variants:
                self._at(size, variant)

    def rows_of(self, rows: int) -> int:
        """Of the smallest for a step of so many rows; 0 where none is large enough."""
        return next((size for size in self._sizes if size >= rows), 0)

    def of(self, rows: int, segments: int) -> DecodeGraph:
        """The smallest for a step of so many rows, in so many segments with adapters."""
        return self._at(self.rows_of(rows), variant_for(rows, segments) if segments else None)

    def forget(self) -> None:
        """Memory that they read has moved: they are captured again when they are next wanted."""
        if self._graphs and self._shared is not None and self._shared.pool.is_cuda:
            torch.cuda.synchronize()  # one of them may be running
        self._graphs.clear()
        self._shared = None

    def _at(self, size: int, variant: Variant | None) -> DecodeGraph:
        if (size, variant) not in self._graphs:
            self._shared = self._shared or self._make_shared()
            assert self._capture is not None, "`none` has no sizes"
            self._graphs[size, variant] = DecodeGraph(self._shared, size, variant, self._capture)
        return self._graphs[size, variant]
