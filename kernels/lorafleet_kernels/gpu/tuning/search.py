"""The fastest of the forms that ship, for one step: measured, and right before it counts.

Forms are timed roughly first, then the best of them again, more often: successive halving. The groups of a step share
its work items, so every height of tiles is searched for all groups, and the height that is best for their sum wins."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor
from triton.errors import TritonError

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
from lorafleet_kernels.gpu.tuning.clock import REPEATS, Timer
from lorafleet_kernels.gpu.tuning.lookup import Found, ModelShapes, Tuning
from lorafleet_kernels.gpu.tuning.work import Work, fused

WORTH = 1.03
"""A form that gains less is not taken: what the clock cannot tell from noise stays as it is everywhere."""
ROUNDS = ((1, 4), (3, 3))
"""Repeats in a rough round, and one of how many goes on; the last round has `REPEATS`."""
LEAST_LEFT = 3
NARROWEST = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9, torch.float32: 2.0**-18}
"""How far a right form may be off the default, of a value: a few units in the last place, as sums have other orders."""
NOISE = 1e-4
"""And of the largest: what float32 sums lose, and what cancels."""

Say = Callable[[str], None]


class OutOfTime(Exception):
    """The tuner's seconds are spent."""


class Budget:
    """So many seconds from now on. Virtual time in tests."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._end = now, now() + seconds

    def check(self) -> None:
        """Raises OutOfTime."""
        if self._now() >= self._end:
            raise OutOfTime


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
    step: StepShape, shapes: ModelShapes, processors: int, work_of: Callable[[GroupShape], Work], timer: Timer,
    budget: Budget, say: Say,
) -> Tuning:  # fmt: skip
    """Raises OutOfTime; ValueError where the default form is not right, or does not run."""
    defaults = default_forms(step, shapes.groups, shapes.grain, processors)
    best: dict[int, dict[str, tuple[LoraConfig, float]]] = {m: {} for m in heights(step, defaults.m)}
    default_seconds: dict[str, float] = {}
    for name, group in shapes.groups.items():
        work, default = work_of(group), defaults.configs[name]
        try:
            expected = work.result(default)
        except TritonError as error:
            raise ValueError(f"{name}: the default form does not run on this card: {_short(error)}") from error
        for m, found in best.items():
            forms = _right(candidates(step, group, default, m), expected, work, budget, partial(_say_of, say, name))
            seconds = fastest(forms, default, work, timer, budget)
            if default in seconds:
                default_seconds[name] = seconds[default]
            if seconds:
                config = min(seconds, key=seconds.__getitem__)
                found[name] = config, seconds[config]
    if default_seconds.keys() != shapes.groups.keys():
        raise ValueError("the default form's result is no number")
    return Tuning(shapes, step, _chosen(best, defaults.m, defaults.configs, default_seconds))


def fastest(
    forms: Sequence[LoraConfig], default: LoraConfig, work: Work, timer: Timer, budget: Budget
) -> dict[LoraConfig, float]:
    """Seconds of those that were left in the last round; the default is, where it is among them."""
    left = list(forms)
    for repeats, among in ROUNDS:
        if len(left) > LEAST_LEFT:
            ranked = _timed(left, repeats, work, timer, budget)[: max(LEAST_LEFT, -(-len(left) // among))]
            kept = {config for config, _ in ranked}
            left = [config for config in left if config in kept or config == default]
    return dict(_timed(left, REPEATS, work, timer, budget))


def _timed(
    forms: Sequence[LoraConfig], repeats: int, work: Work, timer: Timer, budget: Budget
) -> list[tuple[LoraConfig, float]]:
    """Forms and seconds, the fastest first."""
    seconds = []
    for config in forms:
        budget.check()
        seconds.append((config, timer(work.run(config), work.copies, repeats)))
    return sorted(seconds, key=lambda found: found[1])


def agrees(result: Tensor, expected: Tensor) -> bool:
    """Whether two results of the same sum in another order are the same, but for rounding. Never with NaN."""
    allowed = NARROWEST[expected.dtype] * expected.double().abs() + NOISE * expected.double().abs().max()
    return bool(((result.double() - expected.double()).abs() <= allowed).all())


def _chosen(
    best: Mapping[int, Mapping[str, tuple[LoraConfig, float]]], default_m: int, defaults: Mapping[str, LoraConfig],
    default_seconds: Mapping[str, float],
) -> dict[str, Found]:  # fmt: skip
    """Of the best height, the default's unless another is worth it; of each group, the default form in the same way."""
    totals = {m: sum(s for _, s in of.values()) for m, of in best.items() if of.keys() == defaults.keys()}
    m = min(totals, key=totals.__getitem__)
    if totals[default_m] < WORTH * totals[m]:
        m = default_m
    found = {}
    for name, (config, seconds) in best[m].items():
        before = default_seconds[name]
        if m == default_m and before < WORTH * seconds:
            config, seconds = defaults[name], before
        found[name] = Found(config, seconds, before)
    return found


def _right(forms: Iterable[LoraConfig], expected: Tensor, work: Work, budget: Budget, say: Say) -> list[LoraConfig]:
    """Those whose result is the default's; of others is said why not."""
    right = []
    for config in forms:
        budget.check()
        try:
            if agrees(work.result(config), expected):
                right.append(config)
            else:
                say(f"left out, its result is wrong: {shown(config)}")
        except TritonError as error:  # more shared memory or registers than this card has
            say(f"left out, {_short(error)}: {shown(config)}")
    return right


def _say_of(say: Say, group: str, why: str) -> None:
    say(f"{group}: {why}")


def shown(config: LoraConfig) -> str:
    """A form in a line for people."""
    forms = f"shrink {config.shrink}, expand {config.expand}"
    return f"{config.variant} {forms}, {config.splits} splits, {config.lanes} lanes"


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
