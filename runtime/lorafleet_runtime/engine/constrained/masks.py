"""What may come next in the rows of one step."""

from __future__ import annotations

from dataclasses import dataclass, field

Place = tuple[str, int]
"""A request, and a place in its output."""


@dataclass(slots=True)
class Masks:
    """By place, `allowed`, one bit a token, or in `errors` "CODE: message"."""

    allowed: dict[Place, bytes] = field(default_factory=dict)
    errors: dict[Place, str] = field(default_factory=dict)
