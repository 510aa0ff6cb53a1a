"""From outcomes to lines with goals: ratios are taken within a round, and their median over the rounds is reported."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from bench.engine_cells import (
    BASE1,
    BASE8,
    BASE32,
    C1,
    C8,
    C32,
    CELLS,
    OURS,
    PEFT_MIXED,
    PEFT_SINGLE,
    PEFT_SWAP,
    RANKS,
    VLLM,
    VLLM_BASE,
    Measured,
)
from bench.record import Result

NAME = "engine"


def results(measured: Measured, settings: str) -> list[Result]:
    """What was measured in every cell, then every goal whose systems ran. `settings` go into each case."""
    found: list[Result] = []
    for cell in CELLS:
        for system in cell.systems:
            found += _plain(measured, cell.name, system)
    for over in (
        _ratio(measured, C32, VLLM, C32, 6.0),
        _ratio(measured, C32, VLLM_BASE, BASE32, 1.25),
        _ratio(measured, C32, PEFT_MIXED, C32, 2.5),
        _ratio(measured, C32, PEFT_SWAP, C32, 8.0),
        _ratio(measured, C32, PEFT_SINGLE, C1, None),
        _ratio(measured, RANKS, VLLM, RANKS, None),
        _limit(measured),
        _mixed_ranks(measured),
        _overhead(measured),
        _first_token(measured, C1, BASE1),
        _first_token(measured, C8, BASE8),
        _first_token(measured, C32, BASE32),
    ):
        found += over
    # A system that was cut off before anything ended has no time per token.
    return [replace(result, case=f"{result.case}; {settings}") for result in found if math.isfinite(result.value)]


def _plain(measured: Measured, cell: str, system: str) -> list[Result]:
    outcomes = measured.outcomes.get((cell, system), [])
    if not outcomes:
        return []
    case = f"{cell}: {system}" + (" (cut off)" if any(o.cut for o in outcomes) else "")
    waits = sorted(wait for outcome in outcomes for wait in outcome.ttfts)
    values = [
        ("output", statistics.median(o.speed for o in outcomes), "tokens/s"),
        ("TTFT p50", statistics.median(waits), "s"),
        ("TTFT p99", waits[min(len(waits) - 1, int(0.99 * len(waits)))], "s"),
        ("time per output token p50", 1000 * statistics.median(o.tpot for o in outcomes), "ms"),
    ]
    return [Result(NAME, case, metric, value, unit, repeats=len(outcomes)) for metric, value, unit in values]


def _ratio(measured: Measured, ours_in: str, other: str, other_in: str, goal: float | None) -> list[Result]:
    ours, theirs = measured.speeds(ours_in, OURS), measured.speeds(other_in, other)
    return _compared(ours_in, f"output, over {other} ({other_in})", ours, theirs, "tokens/s", least=goal)


def _limit(measured: Measured) -> list[Result]:
    tokens = next(cell.requests for cell in CELLS if cell.name == C32) * measured.output
    ours, most = measured.speeds(C32, OURS), [tokens / seconds for seconds in measured.limits]
    return _compared(C32, "output, over the limit of the bare products", ours, most, "tokens/s", least=0.7)


def _mixed_ranks(measured: Measured) -> list[Result]:
    ours, alike = measured.speeds(RANKS, OURS), measured.speeds(C32, OURS)
    return _compared(RANKS, "output, over our own with rank 16", ours, alike, "tokens/s", least=0.9)


def _overhead(measured: Measured) -> list[Result]:
    """Seconds of the whole run with adapters over those without."""
    seconds = [[o.seconds for o in measured.outcomes.get((cell, OURS), [])] for cell in (C32, BASE32)]
    return _compared(C32, "LoRA overhead: seconds, over our own base", seconds[0], seconds[1], "s", most=1.15)


def _first_token(measured: Measured, cell: str, base_cell: str) -> list[Result]:
    """Against the quickest of the others in each round, the bare compiled model included."""
    others = [measured.ttfts(cell, name) for name in (VLLM, PEFT_MIXED, PEFT_SWAP, PEFT_SINGLE)]
    others.append(measured.ttfts(base_cell, VLLM_BASE))
    best = [min(waits) for waits in zip(*[o for o in others if o], strict=True)]
    return _compared(cell, "TTFT p50, over the quickest other's", measured.ttfts(cell, OURS), best, "s", most=1.0)


def _compared(
    case: str, metric: str, ours: Sequence[float], other: Sequence[float], unit: str, *, least: float | None = None,
    most: float | None = None,
) -> list[Result]:  # fmt: skip
    if not ours or not other:
        return []
    ratio = statistics.median(a / b for a, b in zip(ours, other, strict=True))
    goal = "" if least is None and most is None else f">= {least}" if most is None else f"<= {most}"
    met = None if not goal else ratio >= least if least is not None else ratio <= (most or 0.0)
    value, baseline = statistics.median(ours), statistics.median(other)
    return [Result(NAME, case, metric, value, unit, baseline, ratio, goal, met, len(ours))]
