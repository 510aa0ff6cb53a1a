"""Lines and charts of `bench.adapters_scale`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.adapters_scale_load import Turn
from bench.adapters_scale_steps import Longest, Probes
from bench.record import Result
from bench.svg_chart import Line, write_chart

NAME = "adapters_scale"
DOCS = Path(__file__).parent.parent / "docs" / "engine"
MOST_LOSS = 0.05


@dataclass(frozen=True, slots=True)
class Point:
    """One round: the engine with few adapters and the one with `count`."""

    count: int
    popularity: str
    few: Turn
    many: Turn

    def line(self) -> str:
        many = self.many
        return (
            f"{self.count} adapters, {self.popularity}: {many.speed:.0f} tokens/s, with few {self.few.speed:.0f}; TTFT "
            f"{many.ttft:.3f} s; {statistics.mean(many.distinct):.1f} adapters in a batch, with few "
            f"{statistics.mean(self.few.distinct):.1f}"
        )


@dataclass(frozen=True, slots=True)
class StepBytes:
    """What a decode step reads from memory: the base's weights, the keys and values of all in flight at their mean
    length, and of each distinct adapter in the batch so much."""

    weights: int
    kv: float
    adapter: float

    def left(self, few: float, many: float) -> float:
        """Of the throughput with `few` distinct adapters in a batch, what `many` would leave if bytes were all."""
        rest = self.weights + self.kv
        return (rest + few * self.adapter) / (rest + many * self.adapter)


def results(points: Sequence[Point], probes: Probes, steps: Longest, read: StepBytes, case: str) -> list[Result]:
    """Every point, the greatest count's loss, the cold adapter and the steps, with their goals."""
    found: list[Result] = []
    for popularity in dict.fromkeys(p.popularity for p in points):
        most = max(p.count for p in points)
        for count in sorted({p.count for p in points}):
            rows = [p for p in points if p.count == count and p.popularity == popularity]
            where = f"{count} adapters, {popularity}; {case}"
            few, many = statistics.median(p.few.speed for p in rows), statistics.median(p.many.speed for p in rows)
            ratio = statistics.median(p.many.speed / p.few.speed for p in rows)
            distinct = statistics.mean(a for p in rows for a in p.many.distinct)
            among_few = statistics.mean(a for p in rows for a in p.few.distinct)
            left = read.left(among_few, distinct)
            goal, met = (f">= {1 - MOST_LOSS}", ratio >= 1 - MOST_LOSS) if count == most else ("", None)
            found += [
                Result(NAME, where, "output, over 5 adapters", many, "tokens/s", few, ratio, goal, met, len(rows)),
                Result(NAME, where, "TTFT p50", statistics.median(p.many.ttft for p in rows), "s", repeats=len(rows)),
                Result(NAME, where, "TTFT p99", _p99(rows), "s", repeats=len(rows)),
                Result(NAME, where, "adapters in a batch", distinct, "", among_few, repeats=len(rows)),
                Result(NAME, where, "that ratio, over what reading a batch's distinct adapters leaves", ratio, "", left,
                       ratio / left, repeats=len(rows)),
            ]  # fmt: skip
    return [*found, *_cold(probes, case), *_steps(steps, case)]


def _p99(rows: Sequence[Point]) -> float:
    waits = sorted(wait for row in rows for wait in row.many.ttfts)
    return waits[min(len(waits) - 1, int(0.99 * len(waits)))]


def _cold(probes: Probes, case: str) -> list[Result]:
    if not probes.cold or not probes.warm:
        return []
    warm, cold = statistics.median(probes.warm), statistics.median(probes.cold)
    allowed = statistics.median(probes.decode) + statistics.median(probes.copies)
    goal = f"<= {1000 * allowed:.1f} ms more: a decode step and the copy"
    return [
        Result(NAME, f"a cold adapter beside load; {case}", "TTFT p50, over a warm one's", 1000 * cold, "ms",
               1000 * warm, cold / warm, goal, cold - warm <= allowed, len(probes.cold)),
    ]  # fmt: skip


def _steps(steps: Longest, case: str) -> list[Result]:
    metric = "longest step over the median with as many prompts"
    return [
        Result(NAME, f"while adapters are read and loaded; {case}", metric, steps.loading, "x", steps.quiet,
               steps.loading / steps.quiet, "<= 2", steps.loading <= 2, steps.steps),
    ]  # fmt: skip


def draw(points: Sequence[Point]) -> None:
    """Throughput and TTFT over the number of adapters, as S-LoRA's paper shows them."""
    charts: tuple[tuple[str, str, str, Callable[[Point], float]], ...] = (
        ("throughput-adapters", "Throughput over registered adapters", "tokens/s", lambda p: p.many.speed),
        ("ttft-adapters", "Median time to the first token over registered adapters", "seconds", lambda p: p.many.ttft),
    )
    for name, title, unit, value in charts:
        lines = [
            Line(popularity, [(float(count), _median(points, popularity, count, value)) for count in counts], colour)
            for colour, popularity in enumerate(dict.fromkeys(p.popularity for p in points))
            if (counts := sorted({p.count for p in points}))
        ]
        write_chart(DOCS / f"{name}.svg", title, "registered adapters", unit, lines)


def _median(points: Sequence[Point], popularity: str, count: int, value: Callable[[Point], float]) -> float:
    return statistics.median(value(p) for p in points if p.popularity == popularity and p.count == count)
