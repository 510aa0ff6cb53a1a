"""The adapters of one step: which slices of the batch get which deltas, decided once and applied at every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorafleet_kernels import reference as ops
from torch import Tensor

from lorafleet_runtime.core.batch import Segment
from lorafleet_runtime.model.lora import GroupView


class LoraStep:
    """Callable as the decoder's `LoraHook`. Base rows cost nothing: they are in no segment here."""

    def __init__(self, segments: Sequence[Segment], views: Mapping[int, tuple[Mapping[str, GroupView], ...]]) -> None:
        self._segments = [(s.begin, s.end, views[s.adapter.handle]) for s in segments if s.adapter is not None]

    @property
    def active(self) -> bool:
        return bool(self._segments)

    def __call__(self, layer: int, group: str, x: Tensor, y: Tensor) -> None:
        for begin, end, layers in self._segments:
            view = layers[layer].get(group)
            if view is not None:
                ops.lora_segment(y[begin:end], x[begin:end], view.a, view.parts)
