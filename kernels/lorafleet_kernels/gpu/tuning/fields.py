"""The fields of a file of tunings, each checked when it is read."""

from __future__ import annotations

from typing import TypeVar

_Kind = TypeVar("_Kind")


class Malformed(ValueError):
    """A file of tunings is not one; the message names the field."""


def get(record: object, name: str, kind: type[_Kind], where: str) -> _Kind:
    """Of the object at `where`, the file itself where that is empty. All of these raise Malformed."""
    if not isinstance(record, dict):
        raise Malformed(f"{where or 'the file'}: must be an object")
    path = f"{where}.{name}" if where else name
    if name not in record:
        raise Malformed(f"{path}: missing")
    value = record[name]
    if type(value) is not kind:
        raise Malformed(f"{path}: {value!r} is no {kind.__name__}")
    return value


def positive(record: object, name: str, where: str, least: int = 1) -> int:
    """A number that is at least `least`."""
    value = get(record, name, int, where)
    if value < least:
        raise Malformed(f"{where}.{name}: {value} must be at least {least}")
    return value


def microseconds(record: object, name: str, where: str) -> float:
    """In seconds."""
    value = get(record, name, float, where)
    if not 0 < value < float("inf"):
        raise Malformed(f"{where}.{name}: {value} is no time")
    return value / 1e6


def as_microseconds(seconds: float) -> float:
    """As it is stored."""
    return round(1e6 * seconds, 3)
