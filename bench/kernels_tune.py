"""`python -m bench.kernels --tune`: every form of shrink + expand that ships, by group, rows and rank, on this card;
and where the best is faster than the default by more than 5 %. A finding to look at: nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch

from bench.kernels_cases import LLAMA_3_8B, DeltaCase, shapes
from bench.kernels_delta import over_copies, work_for
from bench.kernels_rivals import Call, DeltaWork
from bench.kernels_timing import Clock, Device, this_device
from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.lora_config import (
    MOST_SPLITS,
    TILE_GRAIN,
    LoraConfig,
    StepShape,
    Tiles,
    Variant,
    choose,
    row_expands,
    row_shrinks,
    tile_expands,
    tile_shrinks,
)
from lorafleet_runtime.model.config import GROUPS, DecoderConfig

ROWS = ((1, 1), (8, 8), (32, 4), (64, 8), (64, 64), (256, 32), (256, 256), (2048, 4))
RANKS = (16, 64)
SECONDS, WORTH = 300.0, 1.05
SPLITS = tuple(1 << i for i in range(MOST_SPLITS.bit_length()))


@dataclass(frozen=True, slots=True)
class Tuned:
    """Seconds of the default form, and of the best."""

    case: DeltaCase
    default: LoraConfig
    best: LoraConfig
    seconds: float
    best_seconds: float

    @property
    def gain(self) -> float:
        return self.seconds / self.best_seconds

    def __str__(self) -> str:
        return f"{self.case}: {shown(self.best)} is {self.gain:.2f} times as fast as the default, {shown(self.default)}"


def shown(config: LoraConfig) -> str:
    forms = f"shrink {config.shrink}, expand {config.expand}"
    return f"{config.variant} {forms}, {config.splits} splits, {config.lanes} lanes"


def candidates(default: LoraConfig, rank: int, slices: int) -> list[LoraConfig]:
    """All shipped forms for usual widths: rows, and tiles of every height with all splits. What shrinks more ranks at a
    time than there are, is left out, but for the least."""
    found = [default]
    for variant, shrinks, expands in (
        (Variant.ROWS, row_shrinks(), row_expands()), (Variant.TILES, tile_shrinks(), tile_expands()),
    ):  # fmt: skip
        for shrink, expand in product(_usual(shrinks), [e for e in expands if e.n >= TILE_GRAIN]):
            if shrink.m != expand.m or (shrink.n > 16 and shrink.n >= 2 * rank * slices) or expand.k > max(rank, 16):
                continue
            lanes = min(-(-rank * slices // shrink.n), 4)
            found += [LoraConfig(variant, shrink, expand, splits, lanes) for splits in SPLITS]
    return list(dict.fromkeys(found))


def tuned(
    device: Device, cases: Sequence[DeltaCase], clock: Clock, model: DecoderConfig = LLAMA_3_8B
) -> Iterator[Tuned]:
    for case in cases:
        work = work_for(case, device, model)
        group, rank = work.group, max(case.ranks_of_adapters)
        shape = StepShape(case.rows, case.adapters, rank)
        default = choose(shape, group, work.adapters.grain, Card.of(device.device).processors)
        seconds: dict[LoraConfig, float] = {}
        for config in candidates(default, rank, len(group.widths)):
            if clock.over and seconds:
                break
            seconds[config] = device.time(over_copies(_call(work, config), work), work.copies)
        best = min(seconds, key=seconds.__getitem__)
        yield Tuned(case, default, best, seconds[default], seconds[best])
        if clock.over:
            return


def cases() -> list[DeltaCase]:
    return [DeltaCase(group, *rows, (rank,)) for rows in ROWS for rank in RANKS for group in GROUPS]


def tune() -> None:
    device, count = this_device(), 0
    print(f"{device.name}: the best of the shipped forms, where it beats the default by more than {WORTH - 1:.0%}")
    for found in tuned(device, cases(), Clock(SECONDS)):
        count += 1
        if found.gain > WORTH:
            print(found, flush=True)
        torch.cuda.empty_cache()
    print(f"{count} of {len(cases())} cases within {SECONDS:.0f} s; groups: {', '.join(shapes(LLAMA_3_8B))}")


def _call(work: DeltaWork, config: LoraConfig) -> Call:
    step = work.adapters.step_with(work.case.segments, work.case.rows, config)
    return lambda i: step(i, work.case.group, work.x[i], work.y[i])


def _usual(shrinks: Sequence[Tiles]) -> list[Tiles]:
    """Without those of models of a small grain, which read fewer inputs at a time."""
    return [s for s in shrinks if s.stages == 5]
