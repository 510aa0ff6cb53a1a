"""A line chart as SVG: small, readable on any background, and made of nothing but text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 74, 16, 34, 46
COLOURS = ("#1f6fb4", "#d2691e", "#2e8b57", "#8b3a8b", "#b22222", "#5f6a72")
MOST_POINTS = 160


@dataclass(frozen=True, slots=True)
class Line:
    """`dash` as SVG has it ("6 4"), or empty; `colour` counts in `COLOURS`."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dash: str = ""


def write_chart(path: Path, title: str, x_name: str, y_name: str, lines: Sequence[Line]) -> None:
    """One chart, both axes from 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(chart(title, x_name, y_name, lines))


def chart(title: str, x_name: str, y_name: str, lines: Sequence[Line]) -> str:
    """The SVG's text."""
    points = [point for line in lines for point in line.points]
    x_ticks = _ticks(max((x for x, _ in points), default=1.0))
    y_ticks = _ticks(max((y for _, y in points), default=1.0))
    rows = HEIGHT + 18 * ((len(lines) + 2) // 3)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {rows}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{rows}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]

    def x_of(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / x_ticks[-1]

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / y_ticks[-1]

    for tick in x_ticks:
        parts.append(_rule(x_of(tick), y_of(0), x_of(tick), y_of(y_ticks[-1])))
        parts.append(
            f'<text x="{x_of(tick):.0f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_number(tick)}</text>'
        )
    for tick in y_ticks:
        parts.append(_rule(x_of(0), y_of(tick), x_of(x_ticks[-1]), y_of(tick)))
        parts.append(f'<text x="{LEFT - 6}" y="{y_of(tick) + 4:.0f}" text-anchor="end">{_number(tick)}</text>')
    parts.append(f'<text x="{WIDTH / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_name)}</text>')
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(
        f'<text x="16" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 16 {middle:.0f})">'
        f"{escape(y_name)}</text>"
    )
    for position, line in enumerate(lines):
        style = f'stroke="{COLOURS[line.colour % len(COLOURS)]}" stroke-width="2" fill="none"'
        style += f' stroke-dasharray="{line.dash}"' if line.dash else ""
        where = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in _thinned(line.points))
        parts.append(f'<polyline points="{where}" {style}/>')
        x, y = LEFT + 215 * (position % 3), HEIGHT + 8 + 18 * (position // 3)
        parts.append(f'<line x1="{x}" y1="{y}" x2="{x + 30}" y2="{y}" {style}/>')
        parts.append(f'<text x="{x + 36}" y="{y + 4}">{escape(line.name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _ticks(most: float) -> list[float]:
    """4 to 8 round numbers from 0 to at least `most`."""
    most = most or 1.0
    step = 10.0 ** math.floor(math.log10(most))
    while most / step < 4:
        step /= 2
    while most / step > 8:
        step *= 2
    return [step * i for i in range(math.ceil(most / step - 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    stride = -(-len(points) // MOST_POINTS)
    return [*points[::stride], points[-1]] if stride > 1 else points
