"""What a request costs its tenant: service, h(prompt tokens, output tokens), in integer micro-units [VTC 3.1, 4.2].

Every h is non-decreasing in both arguments: a step charges the difference, and the differences add up to h. Prompt
tokens that a prefix cache held have a weight of their own, since they take memory but no computation.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Protocol

MICRO = 1_000_000
"""Micro-units of service in one unit; with the default cost a unit is a prompt token."""

Points = tuple[tuple[int, int], ...]


class Cost(Protocol):
    """Service of a request with `prompt` tokens computed or found, `cached` of them found, and `output` tokens."""

    def of(self, prompt: int, output: int, cached: int = 0) -> int:
        """Micro-units."""
        ...


def micro(value: float) -> int:
    """A coefficient in micro-units."""
    return round(value * MICRO)


@dataclass(frozen=True, slots=True)
class Linear:
    """`input` a prompt token, `output` an output token: 1 and 2, as providers price them."""

    input: int = MICRO
    output: int = 2 * MICRO
    cached: int = MICRO // 10

    def of(self, prompt: int, output: int, cached: int = 0) -> int:
        return self.input * (prompt - cached) + self.cached * cached + self.output * output


@dataclass(frozen=True, slots=True)
class Quadratic:
    """input·p + output·q + product·p·q + output_squared·q² + constant: the shape that the paper fits to measured times.

    Memory over time has it too: `kv_time` makes one."""

    input: int
    output: int
    product: int = 0
    output_squared: int = 0
    constant: int = 0
    cached: int = MICRO // 10

    def of(self, prompt: int, output: int, cached: int = 0) -> int:
        linear = self.input * (prompt - cached) + self.cached * cached + self.output * output
        return self.constant + linear + self.product * prompt * output + self.output_squared * output * output


def kv_time(prompt: int, output: int, memory: int) -> Quadratic:
    """Linear, and `memory` for every token that is held for one step: Σ_{t=1..q} (p + t) = p·q + q·(q + 1) / 2."""
    half = memory // 2
    return Quadratic(prompt, output + half, product=memory, output_squared=half)


@dataclass(frozen=True, slots=True)
class Piecewise:
    """Two tables of (tokens, micro-units), linear between their points, from (0, 0) unless there is a point at 0;
    beyond the last point its slope goes on."""

    input: Points
    output: Points
    cached: int = MICRO // 10

    def of(self, prompt: int, output: int, cached: int = 0) -> int:
        return _at(self.input, prompt - cached) + self.cached * cached + _at(self.output, output)


def _at(points: Points, tokens: int) -> int:
    found = bisect_left(points, tokens, key=lambda point: point[0])
    if found < len(points) and points[found][0] == tokens:
        return points[found][1]
    table = points if points[0][0] == 0 else ((0, 0), *points)
    above = min(bisect_left(table, tokens, key=lambda point: point[0]), len(table) - 1)
    (low, cost), (high, more) = table[above - 1], table[above]
    # Rounded down from below, so that the result never falls as tokens rise.
    return cost + (more - cost) * (tokens - low) // (high - low)
