"""The fastest of the forms that ship, for attention over one kind of heads."""

from __future__ import annotations

from collections.abc import Sequence

from lorafleet_kernels.gpu.forms.attention import Capability
from lorafleet_kernels.gpu.tuning.attention.lookup import (
    AttentionForm,
    AttentionTuning,
    Heads,
    Measured,
    Phase,
    Sequences,
    shown,
)
from lorafleet_kernels.gpu.tuning.clock import Timer
from lorafleet_kernels.gpu.tuning.search import Budget, Say, Work, expected_of, fastest, right, worth_it


def tune_attention(
    heads: Heads, phase: Phase, shapes: Sequence[Sequences], works: Sequence[Work[AttentionForm]],
    capability: Capability, timer: Timer, budget: Budget, say: Say,
) -> AttentionTuning:  # fmt: skip
    """One form for all `works`, one for each of `shapes`: that with the least geometric mean of their times, if it is
    worth it. Raises OutOfTime; ValueError where the default form is not right, or does not run."""
    forms = heads.candidates(phase, capability)
    default = forms[0]
    expected = expected_of(default, works)
    seconds = fastest(right(forms, expected, works, budget, say, shown), default, works, timer, budget)
    if default not in seconds:
        raise ValueError("the default form gives another result every time")
    best, before = next(iter(seconds)), seconds[default]
    if not worth_it(seconds[best], before):
        best = default
    measured = (Measured(*each) for each in zip(shapes, seconds[best], before, strict=True))
    return AttentionTuning(heads, best, tuple(measured))
