"""What the tuner times: attention over sequences of one kind, as the engine launches it, over keys and values of noise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lorafleet_kernels.batch import AttentionBatch, HeadSizes
from lorafleet_kernels.gpu.attention.step import AttentionShape, DecodeScratch, TritonAttention, attention_of_step
from lorafleet_kernels.gpu.forms.attention import PAGE_TOKENS, DecodeTiles
from lorafleet_kernels.gpu.tuning.attention.lookup import AttentionForm, Heads, Phase, Sequences
from lorafleet_kernels.gpu.tuning.search import copies_past
from lorafleet_kernels.gpu.tuning.stand import Stand
from lorafleet_kernels.reference_fp8 import FP8

NOISE = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-18}
"""What a result may be off, of the largest value: weights are rounded before they multiply values, to what the maximum
so far makes of them, and other tiles have other maxima."""


class AttentionWork:
    """`sequences.count` of them, whose lengths before their new tokens are spread from half of the mean to half as much
    more. Pages in no order. Copies are layers of one pool."""

    def __init__(self, heads: Heads, phase: Phase, sequences: Sequences, stand: Stand) -> None:
        """Raises ValueError for heads that the kernels do not know."""
        dtype, kv = heads.types
        self._heads, self._phase, self._stand = heads, phase, stand
        cached = _spread(sequences)
        rows = sequences.count * sequences.new
        counts = [-(-(before + sequences.new) // PAGE_TOKENS) for before in cached]
        order = np.split(np.random.default_rng(0).permutation(sum(counts)), np.cumsum(counts)[:-1])
        positions = [before + i for before in cached for i in range(sequences.new)]
        self._batch = AttentionBatch(
            positions,
            [sequences.new] * sequences.count,
            [own.tolist() for own in order],
            sequences.count if phase is Phase.DECODE else 0,
        )
        tokens = PAGE_TOKENS * sum(counts)
        moved = tokens * 2 * heads.kv_heads * heads.size * kv.itemsize
        moved += rows * 2 * heads.heads * heads.size * dtype.itemsize
        self.copies = copies_past(stand.cache, moved)
        self.noise = NOISE[torch.bfloat16 if kv == FP8 and dtype == torch.float16 else dtype]
        generator = torch.Generator(stand.device).manual_seed(0)

        def noise(*shape: int) -> Tensor:
            made = torch.empty(self.copies, *shape, dtype=dtype, device=stand.device)
            return made.normal_(generator=generator)

        self._pool = noise(sum(counts), 2, PAGE_TOKENS, heads.kv_heads, heads.size).to(kv)
        self._scales = None
        if kv == FP8:
            of_heads = (self.copies, sum(counts), heads.kv_heads, PAGE_TOKENS, 2)
            # Two sizes in turn, so that another token's shows.
            sizes = 2.0 ** -(torch.arange(PAGE_TOKENS, device=stand.device) % 2).bfloat16()
            self._scales = sizes[:, None].expand(of_heads).contiguous()
        self._q = noise(rows, heads.heads * heads.size)
        self._out = torch.empty_like(self._q)

    def run(self, form: AttentionForm) -> Callable[[], None]:
        call = self._call(form)

        def run() -> None:
            for copy in range(self.copies):
                call(copy)

        return run

    def result(self, form: AttentionForm) -> Tensor:
        self._out[0].fill_(float("nan"))  # what a form leaves out must show
        self._call(form)(0)
        return self._out[0].clone()

    def _call(self, form: AttentionForm) -> Callable[[int], None]:
        """What computes one copy."""
        attention = self._attention(form)
        launch = attention.decode if self._phase is Phase.DECODE else attention.prefill

        def call(copy: int) -> None:
            launch(copy, self._q[copy], self._out[copy])

        return call

    def _attention(self, form: AttentionForm) -> TritonAttention:
        heads, card = self._heads, self._stand.card
        dtype, kv = heads.types
        decode, prompts = heads.defaults(card.capability)
        forms = (form, prompts) if isinstance(form, DecodeTiles) else (decode, form)
        sizes = HeadSizes(heads.heads, heads.kv_heads, heads.size, 0.0)
        shape = AttentionShape.of(sizes, dtype, card.capability, card.processors, kv, forms)
        tables = (self._q.new_empty(0), self._q.new_empty(0))  # of rotations, which were done before
        scratch = DecodeScratch.of(shape, self._stand.device)
        return attention_of_step(self._pool, self._batch, shape, tables, scratch, self._scales)


def _spread(sequences: Sequences) -> list[int]:
    """How many tokens each sequence has before its new ones."""
    if sequences.count == 1:
        return [sequences.cached]
    return [round(share * sequences.cached) for share in np.linspace(0.5, 1.5, sequences.count)]
