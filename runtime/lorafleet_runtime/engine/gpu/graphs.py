"""Decode steps of a GPU as captured graphs: one replay in place of hundreds of launches.

A graph reads and writes the same memory in every step, so what a step is goes into buffers whose sizes are bounds: a
step of B rows runs in the graph of the next larger size, and the rows beyond are told that they are none. Per size
there are three: without adapters, and with them by rows or by tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorafleet_kernels.batch import AttentionBatch
from lorafleet_kernels.gpu.attention import AttentionShape, DecodeScratch, TritonAttention
from lorafleet_kernels.gpu.attention_plan import Bounds, DevicePlan, plan_attention
from lorafleet_kernels.gpu.lora import GroupForm, LoraStep, Scratch
from lorafleet_kernels.gpu.lora_config import GroupShape, StepShape, Variant, choose, variant_for
from lorafleet_kernels.gpu.lora_host import AdapterPlace, StepSizes, fill_step, most_items
from lorafleet_kernels.gpu.lora_host import Segment as Rows
from lorafleet_kernels.gpu.step_buffer import batch_in
from lorafleet_runtime.model.decoder import Decoder

WARM_UP = 2
"""Runs before a capture: kernels are compiled, and libraries take their workspaces, outside of it."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all graphs of one runner share. `kv [layers, P, 2, 16, kv_heads, D]` and `pool`, as adapters' weights
    lie in it, are the same memory."""

    model: Decoder
    pool: Tensor
    kv: Tensor
    shape: AttentionShape
    decode: DecodeScratch
    groups: Mapping[str, GroupShape]
    grain: int
    processors: int
    max_rank: int


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

    def __init__(
        self, shared: Shared, descriptions: Tensor, rows: int, variant: Variant | None, capture: Capture
    ) -> None:
        """`descriptions`: of layouts, which stay where they are."""
        self._cut = shared.shape.cut
        self._bounds = Bounds(rows, rows, 0, shared.pool.shape[1] + rows)
        self._forms: dict[str, GroupForm] = {}
        self._m = 1
        if variant is not None:
            # Tiles serve segments of four rows and more, so there are few of them; rows serve any number.
            segments = max(1, rows // 4) if variant is Variant.TILES else rows
            step = StepShape(rows, segments, shared.max_rank)
            forms = {name: choose(step, g, shared.grain, shared.processors) for name, g in shared.groups.items()}
            self._forms = {name: GroupForm(shared.groups[name], form) for name, form in forms.items()}
            self._m = max(form.shrink.m for form in forms.values())
        items = most_items(rows, rows, self._m) if self._m > 1 else 0
        self._sizes = StepSizes(rows, items, rows, shared.pool.shape[1])
        attention = self._bounds.length(self._cut)
        total = attention + self._sizes.total + rows
        device = shared.pool.device
        self._host = torch.zeros(total, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._memory: NDArray[np.int32] = self._host.numpy()
        self._parts = (attention, attention + self._sizes.total)
        self._device = torch.zeros(total, dtype=torch.int32, device=device)
        self._idle()
        self._replay = capture(self._function(shared, descriptions))

    def run(
        self, tokens: Sequence[int], batch: AttentionBatch, segments: Sequence[Rows], places: Sequence[AdapterPlace]
    ) -> Tensor:
        """The logits `[rows of the step, V]`, which the next run overwrites. Raises DoesNotFit."""
        attention, lora = self._parts
        plan_attention(batch, self._cut).pack(self._memory[:attention], self._bounds, self._cut)
        if self._forms:
            fill_step(self._memory[attention:lora], self._sizes, segments, places, self._m)
        self._memory[lora : lora + len(tokens)] = tokens
        self._device.copy_(self._host, non_blocking=True)
        return self._replay()[: len(tokens)]

    def _idle(self) -> None:
        """A step of no rows, for the capture."""
        nothing = AttentionBatch([], [], [], 0)
        attention, lora = self._parts
        plan_attention(nothing, self._cut).pack(self._memory[:attention], self._bounds, self._cut)
        if self._forms:
            fill_step(self._memory[attention:lora], self._sizes, [], [], self._m)
        self._device.copy_(self._host)

    def _function(self, shared: Shared, descriptions: Tensor) -> Callable[[], Tensor]:
        attention, lora_end = self._parts
        rows = self._bounds.tokens
        plan = DevicePlan.view(self._device[:attention], self._bounds, self._cut)
        attend = TritonAttention(shared.kv, plan, shared.shape, shared.model.rope, shared.decode)
        lora: LoraStep | None = None
        if self._forms:
            batch = batch_in(self._device[attention:lora_end], self._sizes, descriptions, shared.grain)
            scratch = Scratch.of(self._forms, rows, shared.max_rank, shared.pool.device)
            lora = LoraStep(shared.pool, batch, self._forms, scratch, shared.max_rank)
        tokens = self._device[lora_end:]

        def step() -> Tensor:
            return shared.model.logits(shared.model.forward(tokens, attend, lora))

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
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            result = step()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def variant_of(rows: int, segments: int) -> Variant | None:
    """Which graph a step of so many rows in so many segments with adapters wants."""
    return variant_for(rows, segments) if segments else None
