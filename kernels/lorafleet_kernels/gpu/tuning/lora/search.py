"""The fastest of the forms that ship, for the LoRA kernels of one step.

The groups of a step share its work items, so every height of tiles is searched for all groups, and the height that is
best for their sum wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product

from lorafleet_kernels.gpu.forms.lora import (
    GroupShape,
    LoraConfig,
    StepShape,
    Variant,
    row_expands,
    row_shrinks,
    tile_expands,
    tile_shrinks,
)
from lorafleet_kernels.gpu.forms.step import MOST_LANES, SPLITS, default_forms
from lorafleet_kernels.gpu.tuning.clock import Timer
from lorafleet_kernels.gpu.tuning.lora.lookup import Found, LoraTuning, ModelShapes
from lorafleet_kernels.gpu.tuning.lora.work import fused
from lorafleet_kernels.gpu.tuning.search import Budget, Say, Work, expected_of, fastest, right, worth_it


def heights(step: StepShape, default: int) -> list[int]:
    """Of tiles: what is more than four times a mean segment would be padding. Of rows, 1."""
    if default == 1:
        return [1]
    mean = step.rows / max(step.segments, 1)
    return sorted({default, *(t.m for t in tile_shrinks() if t.m <= 4 * mean)})


def candidates(step: StepShape, group: GroupShape, default: LoraConfig, m: int) -> list[LoraConfig]:
    """Shipped forms of one height for a group, the default first where it is one. Left out is what cannot be better:
    blocks of twice the ranks there are, lanes without a block, splits without inputs; and where the expand is the next
    kernel's, other expands."""
    rows = default.variant is Variant.ROWS
    # Of a small grain there is one form a height, which reads fewer inputs in fewer stages.
    shrinks = [
        t
        for t in (row_shrinks() if rows else tile_shrinks())
        if t.m == m and t.stages == default.shrink.stages and (m != default.shrink.m or t.k == default.shrink.k)
    ]
    expands = [t for t in (row_expands() if rows else tile_expands()) if t.m == m and t.n == default.expand.n]
    if fused(step):
        expands = [default.expand if default.expand in expands else expands[0]] if expands else []
    ranks = step.max_rank * len(group.widths)
    found = [default] if default.shrink.m == m else []
    for shrink, expand in product(shrinks, expands):
        if shrink.n > 16 and shrink.n >= 2 * ranks:
            continue
        blocks, parts = -(-ranks // shrink.n), -(-group.k // shrink.k)
        lanes = sorted({min(lanes, blocks) for lanes in (1, 2, MOST_LANES)})
        splits = [n for n in SPLITS if n < 2 * parts]
        found += [LoraConfig(default.variant, shrink, expand, n, lane) for n, lane in product(splits, lanes)]
    return list(dict.fromkeys(found))


def tune_step(
    step: StepShape, shapes: ModelShapes, processors: int, work_of: Callable[[GroupShape], Work[LoraConfig]],
    timer: Timer, budget: Budget, say: Say,
) -> LoraTuning:  # fmt: skip
    """Raises OutOfTime; ValueError where the default form is not right, or does not run."""
    defaults = default_forms(step, shapes.groups, shapes.grain, processors)
    best: dict[int, dict[str, tuple[LoraConfig, float]]] = {m: {} for m in heights(step, defaults.m)}
    default_seconds: dict[str, float] = {}
    for name, group in shapes.groups.items():
        works, default = (work_of(group),), defaults.configs[name]
        try:
            expected = expected_of(default, works)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        for m, found in best.items():
            forms = candidates(step, group, default, m)
            forms = right(forms, expected, works, budget, partial(_say_of, say, name), shown)
            seconds = {config: one for config, (one,) in fastest(forms, default, works, timer, budget).items()}
            if default in seconds:
                default_seconds[name] = seconds[default]
            if seconds:
                found[name] = next(iter(seconds.items()))
    if default_seconds.keys() != shapes.groups.keys():
        raise ValueError("the default form gives another result every time")
    return LoraTuning(shapes, step, _chosen(best, defaults.m, defaults.configs, default_seconds))


def shown(config: LoraConfig) -> str:
    """A form in a line for people."""
    forms = f"shrink {config.shrink}, expand {config.expand}"
    return f"{config.variant} {forms}, {config.splits} splits, {config.lanes} lanes"


def _chosen(
    best: Mapping[int, Mapping[str, tuple[LoraConfig, float]]], default_m: int, defaults: Mapping[str, LoraConfig],
    default_seconds: Mapping[str, float],
) -> dict[str, Found]:  # fmt: skip
    """Of the best height, the default's unless another is worth it; of each group, the default form in the same way."""
    totals = {m: sum(s for _, s in of.values()) for m, of in best.items() if of.keys() == defaults.keys()}
    m = min(totals, key=totals.__getitem__)
    if not worth_it([totals[m]], [totals[default_m]]):
        m = default_m
    found = {}
    for name, (config, seconds) in best[m].items():
        before = default_seconds[name]
        if m == default_m and not worth_it([seconds], [before]):
            config, seconds = defaults[name], before
        found[name] = Found(config, seconds, before)
    return found


def _say_of(say: Say, group: str, why: str) -> None:
    say(f"{group}: {why}")
