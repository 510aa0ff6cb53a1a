"""A decoder of random weights as the engine runs it on a GPU: products of torch, everything else our kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from triton.runtime.jit import KernelInterface

from bench.kernels_cases import shapes
from bench.kernels_pools import tunings
from lorafleet_kernels import reference
from lorafleet_kernels.batch import AttentionBatch, HeadSizes
from lorafleet_kernels.gpu import elementwise, layers
from lorafleet_kernels.gpu.attention.step import AttentionShape, DecodeScratch, TritonAttention, attention_of_step
from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.layers import TritonLayers
from lorafleet_kernels.gpu.lora.step import LoraStep
from lorafleet_kernels.gpu.tuning.attention.lookup import Heads, attention_forms
from lorafleet_kernels.reference_fp8 import FP8
from lorafleet_runtime.model.config import DecoderConfig

PAGE_TOKENS = reference.PAGE_TOKENS


@dataclass(frozen=True, slots=True)
class RandomLayer:
    """Of a model without norms over heads. `weights` by group, `[out, in]`."""

    input_norm: Tensor
    post_norm: Tensor
    weights: dict[str, Tensor]
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None

    @property
    def qkv(self) -> Callable[[Tensor], Tensor]:
        return partial(F.linear, weight=self.weights["qkv"])

    @property
    def o(self) -> Callable[[Tensor], Tensor]:
        return partial(F.linear, weight=self.weights["o"])

    @property
    def gate_up(self) -> Callable[[Tensor], Tensor]:
        return partial(F.linear, weight=self.weights["gate_up"])

    @property
    def down(self) -> Callable[[Tensor], Tensor]:
        return partial(F.linear, weight=self.weights["down"])


@dataclass(frozen=True, slots=True)
class RandomDecoder:
    """`lm_head [V, H]`."""

    config: DecoderConfig
    layers: tuple[RandomLayer, ...]
    norm: Tensor
    lm_head: Tensor
    joined: TritonLayers
    dependent: bool = False

    @classmethod
    def of(cls, config: DecoderConfig, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> RandomDecoder:
        def noise(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device).normal_(std=shape[-1] ** -0.5)

        def norm() -> Tensor:
            return torch.empty(config.hidden_size, dtype=dtype, device=device).normal_(1.0, 0.1)

        torch.manual_seed(1)
        made = tuple(
            RandomLayer(norm(), norm(), {name: noise(sum(g.widths), g.k) for name, g in shapes(config).items()})
            for _ in range(config.num_layers)
        )
        head = noise(config.vocab_size, config.hidden_size)
        return cls(config, made, norm(), head, TritonLayers(made, config.rms_norm_eps))

    def __call__(self, x: Tensor, attend: TritonAttention, lora: LoraStep | None) -> Tensor:
        """`x [T, H]`, which is overwritten, to the hidden states before the last norm."""
        return self.joined(x, attend, lora)

    def logits(self, hidden: Tensor) -> Tensor:
        normal = elementwise.rms_norm(hidden, self.norm, self.config.rms_norm_eps, self.dependent)
        return F.linear(normal, self.lm_head)

    def with_dependents(self) -> RandomDecoder:
        """The same, whose norms and activations start before the kernels ahead of them have ended."""
        joined = TritonLayers(self.layers, self.config.rms_norm_eps, dependent=True)
        return replace(self, joined=joined, dependent=True)


@dataclass(frozen=True, slots=True)
class Context:
    """Decode rows and chunks over a pool of KV, `[layers, P, 2, 16, kv_heads, D]`, pages in random order; of 8 bits
    where there are `scales [layers, P, kv_heads, 16, 2]`."""

    pool: Tensor
    batch: AttentionBatch
    sizes: HeadSizes
    shape: AttentionShape
    tables: tuple[Tensor, Tensor]
    attention: TritonAttention
    scales: Tensor | None = None

    def with_dependents(self) -> Context:
        """The same, whose rotations and decodes start before the kernels ahead of them have ended."""
        shape = replace(self.shape, dependent=True)
        scratch = DecodeScratch.of(shape, self.pool.device)
        attention = attention_of_step(self.pool, self.batch, shape, self.tables, scratch, self.scales)
        return replace(self, shape=shape, attention=attention)


def context(
    config: DecoderConfig, decodes: Sequence[int], chunks: Sequence[tuple[int, int]], device: torch.device,
    dtype: torch.dtype = torch.bfloat16, *, fp8: bool = False,
) -> Context:  # fmt: skip
    """`decodes`: tokens of each row's context, with its own; `chunks`: (cached, new) tokens of each prompt."""
    sequences = [(length - 1, 1) for length in decodes] + list(chunks)
    counts = [-(-(cached + new) // PAGE_TOKENS) for cached, new in sequences]
    ids = np.split(np.random.default_rng(0).permutation(sum(counts)), np.cumsum(counts)[:-1])
    positions = [cached + i for cached, new in sequences for i in range(new)]
    batch = AttentionBatch(positions, [new for _, new in sequences], [own.tolist() for own in ids], len(decodes))
    torch.manual_seed(2)
    shape_of_pool = (config.num_layers, sum(counts), 2, PAGE_TOKENS, config.num_kv_heads, config.head_dim)
    pool, scales = _pool(shape_of_pool, dtype, device, fp8)
    sizes = HeadSizes(config.num_heads, config.num_kv_heads, config.head_dim, config.rms_norm_eps)
    card = Card.of(device)
    forms = attention_forms(Heads.of(sizes, dtype, pool.dtype), tunings(card), card.capability)
    shape = AttentionShape.of(sizes, dtype, card.capability, card.processors, pool.dtype, forms)
    steps = torch.arange(0, config.head_dim, 2, device=device) / config.head_dim
    angles = torch.outer(torch.arange(max(positions) + 1.0, device=device), config.rope_theta**-steps).repeat(1, 2)
    tables = (angles.cos().to(dtype).unsqueeze(1), angles.sin().to(dtype).unsqueeze(1))
    attention = attention_of_step(pool, batch, shape, tables, DecodeScratch.of(shape, device), scales)
    return Context(pool, batch, sizes, shape, tables, attention, scales)


def _pool(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, fp8: bool
) -> tuple[Tensor, Tensor | None]:
    """Random keys and values, and their scales."""
    if not fp8:
        return torch.empty(shape, dtype=dtype, device=device).normal_(), None
    layers, pages, _, tokens, kv_heads, _ = shape
    numbers = torch.empty(shape, dtype=torch.uint8, device=device).random_(0, 256).bitwise_and_(0xF7)  # none is NaN
    scales = torch.full((layers, pages, kv_heads, tokens, 2), 2.0**-6, dtype=torch.bfloat16, device=device)
    return numbers.view(FP8), scales


@contextmanager
def expands_apart() -> Iterator[None]:
    """Every expand has a launch of its own, whatever the number of rows."""
    before = layers.FUSED_ROWS
    layers.FUSED_ROWS = 0
    try:
        yield
    finally:
        layers.FUSED_ROWS = before


@contextmanager
def counted_launches() -> Iterator[list[str]]:
    """The names of the Triton kernels that are started inside, in order."""
    started: list[str] = []
    usual = KernelInterface.__getitem__

    def counting(kernel: Any, grid: object) -> object:
        started.append(kernel.__name__)
        return usual(kernel, grid)

    KernelInterface.__getitem__ = counting
    try:
        yield started
    finally:
        KernelInterface.__getitem__ = usual
