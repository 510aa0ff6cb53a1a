"""Which form a step gets on a card where some were measured: that of the nearest step that was, or else the default.

Pure: no files, no clock, no device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lorafleet_kernels.gpu.forms.lora import GroupShape, LoraConfig, StepShape, variant_for
from lorafleet_kernels.gpu.forms.step import StepForms, default_forms
from lorafleet_kernels.gpu.forms.weight_types import FP8_NAME

REACH = 2
"""A measurement speaks for steps of half to twice its rows, segments and ranks: beyond, other tiles and other splits
are right, and the default knows more."""
MOST_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class ModelShapes:
    """What of a model and its adapters decides what their forms cost: its fused linear layers by name, the element
    type ("bfloat16") and that of adapters' weights (the same, or "fp8"), and the grain of their rows, in elements."""

    groups: Mapping[str, GroupShape]
    dtype: str
    weights: str
    grain: int

    @property
    def of_fp8(self) -> bool:
        return self.weights == FP8_NAME


@dataclass(frozen=True, slots=True)
class Found:
    """The form that one group gets, and what a launch of it took, in seconds, beside the default's."""

    config: LoraConfig
    seconds: float
    default_seconds: float


@dataclass(frozen=True, slots=True)
class LoraTuning:
    """What was measured for one step of one kind of model: of every group. Raises ValueError where groups are missing,
    or cannot share a step."""

    shapes: ModelShapes
    step: StepShape
    found: Mapping[str, Found]

    def __post_init__(self) -> None:
        if self.found.keys() != self.shapes.groups.keys() or not self.found:
            raise ValueError(f"forms of {sorted(self.found)}, of a model with {sorted(self.shapes.groups)}")
        if self.forms.variant is not variant_for(self.step.rows, self.step.segments):
            raise ValueError(f"forms by {self.forms.variant}, where {self.step} goes by the other variant")

    @property
    def key(self) -> object:
        """A later tuning of the same key takes this one's place."""
        return self.shapes, self.step

    @property
    def forms(self) -> StepForms:
        configs = {name: found.config for name, found in self.found.items()}
        first = next(iter(configs.values()))
        return StepForms(first.variant, first.shrink.m, configs)

    @property
    def seconds(self) -> float:
        """Of all groups."""
        return sum(found.seconds for found in self.found.values())

    @property
    def default_seconds(self) -> float:
        return sum(found.default_seconds for found in self.found.values())


def nearest(step: StepShape, tunings: Iterable[object], shapes: ModelShapes) -> LoraTuning | None:
    """Of `tunings` of whatever kind, the first of the nearest of these shapes and the step's variant; None where none
    is within reach."""
    variant = variant_for(step.rows, step.segments)
    near = [
        tuning
        for tuning in tunings
        if isinstance(tuning, LoraTuning)
        and tuning.shapes == shapes
        and variant is variant_for(tuning.step.rows, tuning.step.segments)
        and max(_apart(step, tuning.step)) <= math.log2(REACH)
    ]
    return min(near, key=lambda tuning: sum(_apart(step, tuning.step)), default=None)


def forms_for(step: StepShape, tunings: Iterable[object], shapes: ModelShapes, processors: int) -> StepForms:
    """The forms of the nearest tuning, or else the default."""
    found = nearest(step, tunings, shapes)
    return default_forms(step, shapes.groups, shapes.grain, processors) if found is None else found.forms


class TunedForms:
    """`forms_for` of one model on one card; steps that were asked for before are remembered."""

    def __init__(self, tunings: Iterable[object], shapes: ModelShapes, processors: int) -> None:
        """`tunings`: of whatever kind."""
        self._tunings = [t for t in tunings if isinstance(t, LoraTuning) and t.shapes == shapes]
        self._shapes, self._processors = shapes, processors
        self._known: dict[StepShape, StepForms] = {}

    def __call__(self, step: StepShape) -> StepForms:
        found = self._known.get(step)
        if found is None:
            if len(self._known) == MOST_REMEMBERED:
                self._known.clear()
            found = forms_for(step, self._tunings, self._shapes, self._processors)
            self._known[step] = found
        return found


def _apart(a: StepShape, b: StepShape) -> tuple[float, float, float]:
    """How many times one doubles to become the other: rows, segments, ranks."""
    pairs = ((a.rows, b.rows), (a.segments, b.segments), (a.max_rank, b.max_rank))
    rows, segments, ranks = (abs(math.log2(max(x, 1) / max(y, 1))) for x, y in pairs)
    return rows, segments, ranks
