"""What a tuner may have found, without a tuner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.lora import GroupShape, StepShape
from lorafleet_kernels.gpu.forms.step import default_forms
from lorafleet_kernels.gpu.tuning.document import Run
from lorafleet_kernels.gpu.tuning.lookup import Found, ModelShapes, Tuning

CARD = Card("NVIDIA H200", (9, 0), 132)
SHAPES = ModelShapes({"qkv": GroupShape(4096, (4096, 1024, 1024)), "o": GroupShape(4096, (4096,))}, "bfloat16", 256)


def tuning(rows: int, segments: int, rank: int = 16, *, splits: int = 1, shapes: ModelShapes = SHAPES) -> Tuning:
    """Default forms with other splits, which tell one tuning from another."""
    step = StepShape(rows, segments, rank)
    configs = default_forms(step, shapes.groups, shapes.grain, CARD.processors).configs
    found = {name: Found(replace(config, splits=splits), 1e-5, 1.25e-5) for name, config in configs.items()}
    return Tuning(shapes, step, found)


def run(tunings: Sequence[Tuning], date: str = "2026-01-02") -> Run:
    return Run({"date": date, "command": "lorafleet-runtime tune --model m"}, tuple(tunings))
