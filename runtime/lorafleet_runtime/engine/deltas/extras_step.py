"""The adapters of one step that are more than LoRA pairs of projections: DoRA, biases, norms, embedding and lm_head.

Each part is applied to the rows of its adapter alone, so that other rows of the batch see nothing of it. A step without
such adapters has no `ExtrasStep`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorafleet_kernels import reference as ops
from lorafleet_runtime.engine.step_plan import Segment
from lorafleet_runtime.model.decoder import LoraHook
from lorafleet_runtime.model.extras import EMBEDDING, FINAL_NORM, LM_HEAD, NORM, SCALE, SHIFT, ExtraViews
from lorafleet_runtime.model.threads import on_all_threads


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of one adapter: a slice where they are adjacent, else their numbers."""

    rows: slice | Tensor
    views: ExtraViews


class ExtrasStep:
    """The decoder's `Extras`. `sampling` are the handles of the rows that sample, in order, -1 for the base model."""

    def __init__(
        self, segments: Sequence[Segment], sampling: Sequence[int], views: Mapping[int, ExtraViews], eps: float
    ) -> None:
        self._eps = eps
        self._segments = [(s.begin, s.end, views[s.adapter]) for s in segments if s.adapter in views]
        self._scaled = [s for s in self._segments if _has(s[2], SCALE) or _has(s[2], SHIFT)]
        self._normed = [s for s in self._segments if _has(s[2], NORM)]
        self._sampled = [_rows(sampling, h, views[h]) for h in dict.fromkeys(sampling) if h in views]

    def before(self, lora: LoraHook | None) -> LoraHook | None:
        """Scales and shifts of a projection's output, then the pairs' deltas, in which the scale already is."""
        if not self._scaled:
            return lora

        def hook(layer: int, group: str, x: Tensor, y: Tensor) -> None:
            for begin, end, views in self._scaled:
                parts = views.layers[layer]
                if (scale := parts.get(SCALE + group)) is not None:
                    y[begin:end].mul_(scale)
                if (shift := parts.get(SHIFT + group)) is not None:
                    y[begin:end].add_(shift)
            if lora is not None:
                lora(layer, group, x, y)

        return hook

    def embed(self, tokens: Tensor, x: Tensor) -> None:
        """Replace or change the embeddings `x [T, H]` of `tokens [T]`, in place."""
        for begin, end, views in self._segments:
            parts, ids, rows = views.spreads, tokens[begin:end], x[begin:end]
            if (full := parts.get(EMBEDDING + "full")) is not None:
                rows.copy_(full.lookup(ids))
            if (scale := parts.get(EMBEDDING + "scale")) is not None:
                rows.mul_(scale.vector())
            if (b := parts.get(EMBEDDING + "b")) is not None:
                rows.addmm_(b.lookup(ids), parts[EMBEDDING + "a"].matrix().t())
            if (trained := views.tokens.get(EMBEDDING)) is not None:
                place = torch.searchsorted(trained, ids).clamp_(max=len(trained) - 1)
                hits = (trained[place] == ids).nonzero()[:, 0]
                rows[hits] = parts[EMBEDDING + "rows"].lookup(place[hits])

    def norm(self, layer: int, name: str, x: Tensor, y: Tensor) -> None:
        """Where an adapter has its own norm `name`, normalise its rows of `x` with that into `y`."""
        for begin, end, views in self._normed:
            if (weight := views.layers[layer].get(NORM + name)) is not None:
                y[begin:end] = ops.rms_norm(x[begin:end], weight, self._eps)

    def final_norm(self, x: Tensor, y: Tensor) -> None:
        """`norm` of the last norm, for the rows that sample."""
        for of in self._sampled:
            if (weight := of.views.spreads.get(FINAL_NORM)) is not None:
                y[of.rows] = ops.rms_norm(x[of.rows], weight.vector(), self._eps)

    @on_all_threads
    def logits(self, h: Tensor, y: Tensor) -> None:
        """Change the logits `y [n, V]` of the normed rows `h [n, H]`, in place: one product per adapter."""
        for of in self._sampled:
            parts = {name: part for name, part in of.views.spreads.items() if name.startswith(LM_HEAD)}
            if not parts:
                continue
            hidden = h[of.rows]
            full = parts.get(LM_HEAD + "full")
            rows = y[of.rows] if full is None else full.product(hidden)
            if (scale := parts.get(LM_HEAD + "scale")) is not None:
                rows = rows * scale.vector()
            if (b := parts.get(LM_HEAD + "b")) is not None:
                rows = rows + b.product(hidden @ parts[LM_HEAD + "a"].matrix())
            if (shift := parts.get(LM_HEAD + "shift")) is not None:
                rows = rows + shift.vector()
            if (trained := of.views.tokens.get(LM_HEAD)) is not None:
                rows = rows.index_copy(1, trained, parts[LM_HEAD + "rows"].product(hidden))
            y[of.rows] = rows


def _has(views: ExtraViews, prefix: str) -> bool:
    return any(name.startswith(prefix) for layer in views.layers for name in layer)


def _rows(sampling: Sequence[int], handle: int, views: ExtraViews) -> _Rows:
    rows = [row for row, of in enumerate(sampling) if of == handle]
    adjacent = rows[-1] - rows[0] + 1 == len(rows)
    return _Rows(slice(rows[0], rows[-1] + 1) if adjacent else torch.tensor(rows), views)
