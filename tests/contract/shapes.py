"""What two JSON documents have in common when their values do not count: fields, and the kinds of their values."""

from __future__ import annotations

from typing import Any


def shape(value: Any) -> Any:
    """Fields and kinds. A list is the shape of its items, which must be one; a number is a number."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        shapes = [shape(item) for item in value]
        assert shapes, "an empty list has no shape to compare"
        assert all(other == shapes[0] for other in shapes), f"items of several shapes: {shapes}"
        return [shapes[0]]
    if isinstance(value, bool):
        return "boolean"
    return "number" if isinstance(value, int | float) else "text"


def words(text: str) -> set[str]:
    """The values that an example such as `Ready|Loading|Failed` allows."""
    return set(text.split("|"))
