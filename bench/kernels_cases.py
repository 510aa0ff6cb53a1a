"""What `bench.kernels` measures, as numbers alone: shapes, cases, the bytes that each must move, goals. No device."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lorafleet_kernels.gpu.forms.lora import GroupShape
from lorafleet_kernels.gpu.lora.host import Segment
from lorafleet_runtime.model.config import GROUPS, DecoderConfig

ITEM = 2
"""Bytes of an element: bfloat16."""
SCALE = 4
"""Bytes that a rank of an adapter in fp8 has beside its rows."""
LLAMA_3_8B = DecoderConfig("llama", 128256, 4096, 14336, 32, 32, 8, 128, 1e-5, 500000.0, 8192)
SMALL = replace(
    LLAMA_3_8B, vocab_size=264, hidden_size=256, intermediate_size=384, num_layers=2, num_heads=2, num_kv_heads=1
)  # fmt: skip
"""For Triton's interpreter: the usual tiles, a few programs."""
MIXED = (8, 16, 32, 64, 128)
RANKS: tuple[tuple[int, ...], ...] = (*((rank,) for rank in MIXED), MIXED)
DECODES = (
    (1, 1), (8, 1), (8, 8), (32, 4), (64, 1), (64, 8), (64, 64), (128, 16), (256, 1), (256, 32), (256, 256),
)  # fmt: skip
"""Rows, and distinct adapters, which have equally many each."""
PREFILL_TOKENS, PREFILL_ADAPTERS = 2048, (1, 2, 4, 8)
ROOFLINE_ROWS = ((1, 1), (8, 8), (32, 8), (64, 8), (64, 64), (128, 16), (256, 32), (256, 256))
CONTEXT = 1024
HEADROOM = 2
"""A cycle of inputs and weights is so many times the L2 cache, at least, so that none of them is still there."""


@dataclass(frozen=True, slots=True)
class DeltaCase:
    """`rows` in equal segments of `adapters`, whose ranks are `ranks` in turn, in one fused linear layer; `fp8`: their
    matrices are e4m3."""

    group: str
    rows: int
    adapters: int
    ranks: tuple[int, ...]
    fp8: bool = False

    def __str__(self) -> str:
        rank = f"r{self.ranks[0]}" if len(self.ranks) == 1 else f"r{self.ranks[0]}-{self.ranks[-1]}"
        return f"{self.group}: {self.rows} rows, {self.adapters} adapters {rank}{' fp8' if self.fp8 else ''}"

    @property
    def ranks_of_adapters(self) -> tuple[int, ...]:
        return tuple(self.ranks[i % len(self.ranks)] for i in range(self.adapters))

    @property
    def segments(self) -> list[Segment]:
        return segments(self.rows, self.adapters)


def shapes(config: DecoderConfig) -> dict[str, GroupShape]:
    """The fused linear layers by name."""
    return {
        group: GroupShape(config.linear_shape(targets[0])[1], tuple(config.linear_shape(t)[0] for t in targets))
        for group, targets in GROUPS.items()
    }


def segments(rows: int, adapters: int) -> list[Segment]:
    """Rows `begin .. end` of each adapter. Raises ValueError where they are not equally many."""
    if rows % adapters:
        raise ValueError(f"{rows} rows are no multiple of {adapters} adapters")
    each = rows // adapters
    return [(i * each, (i + 1) * each, i) for i in range(adapters)]


def decode_cases(seed: int = 0) -> list[DeltaCase]:
    """All of them, shuffled: those measured before a budget ends are a fair sample of them. Ranks in turn say nothing
    of a single adapter, so that is left out."""
    cases = [
        DeltaCase(group, rows, adapters, ranks)
        for rows, adapters in DECODES
        for ranks in RANKS
        for group in GROUPS
        if adapters > 1 or len(ranks) == 1
    ]
    random.Random(seed).shuffle(cases)
    return cases


def fp8_cases() -> list[DeltaCase]:
    """A few decode cases with adapters in fp8: from one adapter to all distinct."""
    sizes = ((64, 64), (256, 256), (64, 8), (256, 32), (1, 1))
    return [DeltaCase(group, *rows, (rank,), fp8=True) for rows in sizes for rank in (16, 64) for group in GROUPS]


def prefill_cases(seed: int = 0) -> list[DeltaCase]:
    cases = [
        DeltaCase(group, PREFILL_TOKENS, adapters, (rank,))
        for adapters in PREFILL_ADAPTERS
        for rank in (16, 64)
        for group in GROUPS
    ]
    random.Random(seed).shuffle(cases)
    return cases


def weight_bytes(group: GroupShape, ranks: Iterable[int], fp8: bool = False) -> int:
    """A and B of adapters on all projections of a fused layer; in fp8 with a scale for each rank."""
    slices = len(group.widths)
    each = slices * group.k + sum(group.widths)
    return sum(ranks) * (each + SCALE * slices if fp8 else ITEM * each)


def delta_bytes(case: DeltaCase, config: DecoderConfig = LLAMA_3_8B) -> int:
    """Each adapter's weights once, x read, y read and written. What goes from shrink to expand stays in L2."""
    group = shapes(config)[case.group]
    activations = ITEM * case.rows * (group.k + 2 * sum(group.widths))
    return weight_bytes(group, case.ranks_of_adapters, case.fp8) + activations


def adapter_bytes(rank: int, config: DecoderConfig = LLAMA_3_8B) -> int:
    """One adapter on all linear layers."""
    return config.num_layers * sum(weight_bytes(group, (rank,)) for group in shapes(config).values())


def base_bytes(config: DecoderConfig = LLAMA_3_8B) -> int:
    """Weights that a decode step reads: linear layers and lm_head."""
    layer = sum(group.k * sum(group.widths) for group in shapes(config).values())
    return ITEM * (config.num_layers * layer + config.vocab_size * config.hidden_size)


def kv_bytes(tokens: int, config: DecoderConfig = LLAMA_3_8B) -> int:
    """Keys and values of so many tokens, in one layer."""
    return ITEM * 2 * tokens * config.kv_dim


def fp8_kv_bytes(tokens: int, config: DecoderConfig = LLAMA_3_8B) -> int:
    """The same of 8 bits, with a scale of two bytes for each head's key and value."""
    return 2 * tokens * (config.kv_dim + 2 * config.num_kv_heads)


def prefill_flops(tokens: int, config: DecoderConfig = LLAMA_3_8B) -> int:
    """Causal attention of a fresh prompt in one layer: two products over half of the square."""
    return 2 * tokens * tokens * config.num_heads * config.head_dim


def copies(moved: int, cache: int) -> int:
    """How often inputs and weights of `moved` bytes must exist for a cycle through them to outgrow the cache."""
    return max(2, HEADROOM * cache // max(moved, 1) + 1)


def geometric_mean(values: Sequence[float]) -> float:
    """Raises ValueError where there are none."""
    if not values:
        raise ValueError("no values to take the mean of")
    return math.exp(sum(map(math.log, values)) / len(values))


@dataclass(frozen=True, slots=True)
class Floor:
    """Milliseconds of a decode step by bytes alone: of the base model with its KV, and what adapters add."""

    rows: int
    adapters: int
    base: float
    lora: float

    @property
    def overhead(self) -> float:
        return self.lora / self.base


def floor(rows: int, adapters: int, bandwidth: float, rank: int = 16, context: int = CONTEXT) -> Floor:
    """`bandwidth`: bytes a second. The engine_kernels' table 4.2 is this at 4.3 TB/s."""
    kv = LLAMA_3_8B.num_layers * kv_bytes(rows * context)
    return Floor(
        rows, adapters, 1e3 * (base_bytes() + kv) / bandwidth, 1e3 * adapters * adapter_bytes(rank) / bandwidth
    )
