"""The operations of a decoder on a GPU. `dispatch` chooses them; `reference.py` says what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from lorafleet_kernels.batch import AttentionBatch, HeadSizes
from lorafleet_kernels.gpu import elementwise
from lorafleet_kernels.gpu.argmax import TritonArgmax
from lorafleet_kernels.gpu.attention.step import AttentionShape, DecodeScratch, attention_of_step
from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.lora import GroupShape
from lorafleet_kernels.gpu.forms.step import ChooseForms
from lorafleet_kernels.gpu.forms.weight_types import name_of
from lorafleet_kernels.gpu.layers import GpuLayer, TritonLayers
from lorafleet_kernels.gpu.tuning.attention.lookup import Heads, attention_forms
from lorafleet_kernels.gpu.tuning.document import Tuning
from lorafleet_kernels.gpu.tuning.lora.lookup import ModelShapes, TunedForms
from lorafleet_kernels.gpu.tuning.store import load
from lorafleet_kernels.operations import Attention, Operations

LEAST_ROWS = 64


class TritonOperations(Operations):
    """For one device and one stream."""

    def __init__(self, dtype: torch.dtype, device: torch.device, dependent: bool = False) -> None:
        """`dependent`: whether kernels start before those ahead of them have ended. Raises ValueError for a card that
        the kernels do not know, or that does not know such launches."""
        super().__init__(None)
        self.card = Card.of(device)
        if dependent:
            self.card.must_launch_dependents()
        self.dependent = dependent
        self._dtype = dtype
        self._device = device
        self._heads: dict[tuple[HeadSizes, torch.dtype], tuple[AttentionShape, DecodeScratch]] = {}
        self._argmax: TritonArgmax | None = None
        self._rows = 0

    @property
    def aligns_adapters(self) -> bool:
        return True

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return elementwise.rms_norm(x, weight, eps, self.dependent)

    def add_rms_norm(self, x: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
        return elementwise.add_rms_norm(x, delta, weight, eps, self.dependent)

    def silu_and_mul(self, x: Tensor) -> Tensor:
        return elementwise.silu_and_mul(x, self.dependent)

    @property
    def argmax_obeys(self) -> bool:
        return False

    def argmax(self, logits: Tensor, allowed: Sequence[bytes | None] = ()) -> Tensor:
        assert not allowed, "ask `argmax_obeys` first"
        if self._argmax is None or len(logits) > self._rows:
            self._rows = max(LEAST_ROWS, 2 * self._rows, len(logits))
            self._argmax = TritonArgmax(self._rows, self._device, self.card.processors)
        return self._argmax(logits)

    def attention(
        self, pool: Tensor, batch: AttentionBatch, sizes: HeadSizes, tables: tuple[Tensor, Tensor],
        scales: Tensor | None = None,
    ) -> Attention:  # fmt: skip
        shape, scratch = self.heads(sizes, pool.dtype)
        return attention_of_step(pool, batch, shape, tables, scratch, scales)

    def heads(self, sizes: HeadSizes, kv: torch.dtype) -> tuple[AttentionShape, DecodeScratch]:
        """How attention over such heads in a pool of `kv` is launched, by what was measured on this card, and the
        memory that all its launches share."""
        if (sizes, kv) not in self._heads:
            card = self.card
            forms = attention_forms(Heads.of(sizes, self._dtype, kv), self._tunings, card.capability)
            shape = AttentionShape.of(sizes, self._dtype, card.capability, card.processors, kv, forms)
            shape = replace(shape, dependent=self.dependent)
            self._heads[sizes, kv] = shape, DecodeScratch.of(shape, self._device)
        return self._heads[sizes, kv]

    def lora_forms(self, groups: Mapping[str, GroupShape], grain: int, stored: torch.dtype) -> ChooseForms:
        """The forms of a model's adapters, whose weights are `stored` so, by what was measured on this card."""
        shapes = ModelShapes(groups, name_of(self._dtype), name_of(stored), grain)
        return TunedForms(self._tunings, shapes, self.card.processors)

    @cached_property
    def _tunings(self) -> list[Tuning]:
        """Read when the first form is chosen: a start tunes what is missing before that."""
        return load(self.card)

    def fused_layers(self, layers: Sequence[GpuLayer], eps: float) -> TritonLayers:
        return TritonLayers(layers, eps, self.dependent)
