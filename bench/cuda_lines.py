"""Lines and charts of `bench.cuda`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bench.record import Result
from bench.svg_chart import Line, write_chart

NAME = "cuda"
DOCS = Path(__file__).parent.parent / "docs" / "gpu"


@dataclass(slots=True)
class Lines:
    """Makes the results; goals count only where something is `timed`, on a card. `steps`: seconds of decode steps by
    kind of batch and rows; `speeds`: tokens a second over registered adapters, with few of them in use and with all."""

    timed: bool
    bandwidth: float
    card: str
    model: str
    steps: dict[tuple[str, int], float] = field(default_factory=dict)
    speeds: dict[int, tuple[float, float]] = field(default_factory=dict)

    def line(
        self, case: str, metric: str, value: float, unit: str, *, most: float | None = None, least: float | None = None,
        repeats: int = 1,
    ) -> Result:  # fmt: skip
        """A number of its own, with a bound where there is a goal."""
        goal, met = self._judged(value, most, least)
        return Result(NAME, case, metric, value, unit, goal=goal, met=met, repeats=repeats)

    def over(
        self, case: str, metric: str, value: float, baseline: float | None, unit: str, *, most: float | None = None,
        least: float | None = None, repeats: int = 1,
    ) -> Result:  # fmt: skip
        """A number over another; the bound is of the ratio. Without the other, of nothing."""
        if not baseline:
            return Result(NAME, case, metric, value, unit, repeats=repeats)
        ratio = value / baseline
        goal, met = self._judged(ratio, most, least)
        return Result(NAME, case, metric, value, unit, baseline, ratio, goal, met, repeats)

    def _judged(self, value: float, most: float | None, least: float | None) -> tuple[str, bool | None]:
        if not self.timed or (most is None and least is None):
            return "", None
        if most is not None:
            return f"<= {most:g}", value <= most
        assert least is not None, "one of both"
        return f">= {least:g}", value >= least

    def draw(self, folder: Path = DOCS) -> None:
        """What was measured of steps and of many adapters."""
        kinds = list(dict.fromkeys(kind for kind, _ in self.steps))
        decodes = [
            Line(kind, sorted((float(r), 1e3 * seconds) for (k, r), seconds in self.steps.items() if k == kind), colour)
            for colour, kind in enumerate(kinds)
        ]
        if decodes:
            title = f"Decode step, {self.model}, {self.card}"
            write_chart(folder / "decode.svg", title, "rows", "ms", decodes)
        if self.speeds:
            lines = [
                Line(name, [(float(count), pair[index]) for count, pair in sorted(self.speeds.items())], index)
                for index, name in enumerate(("traffic on the first few", "traffic on all, by Zipf's law"))
            ]
            title = f"Throughput over registered adapters, {self.model}, {self.card}"
            write_chart(folder / "adapters.svg", title, "registered adapters", "tokens/s", lines)
