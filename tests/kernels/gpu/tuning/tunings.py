"""What a tuner may have found, without a tuner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.attention import DecodeTiles
from lorafleet_kernels.gpu.forms.lora import GroupShape, StepShape
from lorafleet_kernels.gpu.forms.step import default_forms
from lorafleet_kernels.gpu.tuning.attention.lookup import AttentionForm, AttentionTuning, Heads, Measured, Sequences
from lorafleet_kernels.gpu.tuning.document import Run, Tuning
from lorafleet_kernels.gpu.tuning.lora.lookup import Found, LoraTuning, ModelShapes

CARD = Card("NVIDIA H200", (9, 0), 132)
GROUPS = {"qkv": GroupShape(4096, (4096, 1024, 1024)), "o": GroupShape(4096, (4096,))}
SHAPES = ModelShapes(GROUPS, "bfloat16", "bfloat16", 256)
HEADS = Heads(32, 8, 128, "bfloat16", "bfloat16")
DECODE = DecodeTiles(32, 4, 5, 2)
"""A form that ships for these heads."""


def tuning(rows: int, segments: int, rank: int = 16, *, splits: int = 1, shapes: ModelShapes = SHAPES) -> LoraTuning:
    """Default forms with other splits, which tell one tuning from another."""
    step = StepShape(rows, segments, rank)
    configs = default_forms(step, shapes.groups, shapes.grain, CARD.processors).configs
    found = {name: Found(replace(config, splits=splits), 1e-5, 1.25e-5) for name, config in configs.items()}
    return LoraTuning(shapes, step, found)


def attention_tuning(
    form: AttentionForm = DECODE, *, heads: Heads = HEADS, seconds: float = 1e-5
) -> AttentionTuning:
    """Of decodes by default."""
    return AttentionTuning(heads, form, (Measured(Sequences(8, 1, 511), seconds, 1.25e-5),))


def run(tunings: Sequence[Tuning], date: str = "2026-01-02") -> Run:
    return Run({"date": date, "command": "lorafleet-runtime tune --model m"}, tuple(tunings))
