"""The forms of all groups of one step, which share its work items; and whether forms are such as ship."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lorafleet_kernels.gpu.forms.lora import (
    MOST_SPLITS,
    GroupShape,
    LoraConfig,
    StepShape,
    Variant,
    choose,
    row_expands,
    row_shrinks,
    tile_expands,
    tile_shrinks,
)

MOST_LANES = 4
SPLITS = tuple(1 << i for i in range(MOST_SPLITS.bit_length()))


@dataclass(frozen=True, slots=True)
class StepForms:
    """`configs`: of each group, by name; all of one variant, and of one height `m`: rows of a work item, 1 in the row
    variant. Raises ValueError for forms that cannot share a step."""

    variant: Variant
    m: int
    configs: Mapping[str, LoraConfig]

    def __post_init__(self) -> None:
        for name, config in self.configs.items():
            if (config.variant, config.shrink.m, config.expand.m) != (self.variant, self.m, self.m):
                raise ValueError(
                    f"{name}: {config.variant} of {config.shrink.m} and {config.expand.m} rows in a step of "
                    f"{self.variant} of {self.m}: the groups of a step share its work items"
                )


ChooseForms = Callable[[StepShape], StepForms]
"""Of one model on one card."""


def default_forms(step: StepShape, groups: Mapping[str, GroupShape], grain: int, processors: int) -> StepForms:
    """What `choose` gives every group."""
    configs = {name: choose(step, group, grain, processors) for name, group in groups.items()}
    first = next(iter(configs.values()))
    return StepForms(first.variant, first.shrink.m, configs)


def why_not(config: LoraConfig, grain: int) -> str:
    """Why no step over adapters of this grain may have this form; empty where it may. Only what ships may: the gate has
    compiled it."""
    rows = config.variant is Variant.ROWS
    if config.shrink not in (row_shrinks() if rows else tile_shrinks()):
        return f"no shrink by {config.variant} of {config.shrink} ships"
    if config.expand not in (row_expands() if rows else tile_expands()):
        return f"no expand by {config.variant} of {config.expand} ships"
    if config.shrink.k > grain or config.expand.n > grain:
        return f"tiles {config.shrink} and {config.expand} are longer than the grain, {grain}"
    if not 1 <= config.splits <= MOST_SPLITS:
        return f"{config.splits} splits are not in 1..{MOST_SPLITS}"
    if not 1 <= config.lanes <= MOST_LANES:
        return f"{config.lanes} lanes are not in 1..{MOST_LANES}"
    return ""
