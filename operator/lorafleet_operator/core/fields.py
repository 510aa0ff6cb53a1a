"""Typed readers over a document's mappings: every mistake becomes a Problem with its field path.

Knows YAML's traps and JSON's types, and nothing of any kind of object. A reader answers a usable value
whatever it finds, so that one pass reports every mistake; the caller looks at `Sink.problems` once, at the end.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorafleet_operator.core.objects import Problem

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
          "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}  # fmt: skip
_QUANTITY = re.compile(r"([1-9][0-9]{0,14}(?:\.[0-9]{1,3})?)(Ki|Mi|Gi|Ti|k|M|G|T)?")
_NAMES = {dict: "a mapping", list: "a list", bool: "the boolean", int: "the number", float: "the number",
          str: "the text"}  # fmt: skip


@dataclass(slots=True)
class Sink:
    """Where one document's mistakes gather; `known` are the field paths that its readers asked for."""

    where: str
    problems: list[Problem] = field(default_factory=list)
    known: set[str] = field(default_factory=set)

    def add(self, path: str, message: str) -> None:
        self.problems.append(Problem(self.where, path, message))


def describe(value: object) -> str:
    """A value as a message names it: `the number 3`, `a list`. Long text is cut, nested values stay hidden."""
    name = _NAMES.get(type(value), f"a {type(value).__name__}")
    if isinstance(value, (Mapping, list)):
        return name
    shown = repr(value) if isinstance(value, str) else str(value)
    return f"{name} {shown if len(shown) <= 60 else shown[:57] + '...'}"


def suggestion(word: str, choices: Iterable[str]) -> str:
    """`; did you mean X?` for the closest choice, else what the choices are."""
    names = sorted(choices)
    lowered = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {lowered[close[0]]}?"
    return f"; known here: {', '.join(names)}" if names else "; nothing is allowed here"


class Fields:
    """The fields of one mapping. Every read field is known; `close()` reports the others."""

    def __init__(self, value: object, path: str, sink: Sink) -> None:
        self.path = path
        self.sink = sink
        self._names: set[str] = set()
        if isinstance(value, Mapping):
            self._value: Mapping[Any, Any] = value
        else:
            self._value = {}
            if value is not None:
                sink.add(path, f"must be a mapping, not {describe(value)}")

    def has(self, name: str) -> bool:
        """Is it written? An explicit null counts as absent, as it does for the Kubernetes API server."""
        return self._value.get(name) is not None

    def wrong(self, name: str, message: str) -> None:
        """Report a broken rule at this field, or at the mapping itself when `name` is empty."""
        self.sink.add(f"{self.path}.{name}" if name else self.path, message)

    def take(self, name: str, *, required: bool = False) -> Any:
        """The raw value, or None. Marks the field as known."""
        self._names.add(name)
        self.sink.known.add(re.sub(r"\[\d+\]", "[]", f"{self.path}.{name}"))
        value = self._value.get(name)
        if value is None and required:
            self.wrong(name, "is required")
        return value

    def text(
        self, name: str, *, required: bool = False, most: int = 253, pattern: str = "", expected: str = "",
    ) -> str | None:  # fmt: skip
        """A non-empty string of at most `most` characters that matches `pattern` wholly."""
        value = self.take(name, required=required)
        if value is None:
            return None
        return checked_text(value, f"{self.path}.{name}", self.sink, most, pattern, expected)

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, str) or value not in choices:
            hint = suggestion(value, choices) if isinstance(value, str) else ""
            close = hint if hint.endswith("?") else ""
            self.wrong(name, f"must be one of {', '.join(choices)}, not {describe(value)}{close}")
            return default
        return value

    def integer(self, name: str, least: int, most: int, default: int | None = None) -> int | None:
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            self.wrong(name, f"must be a whole number, not {describe(value)}")
            return default
        return value if self._within(name, value, least, most) else default

    def number(self, name: str, least: float, most: float, default: float | None = None) -> float | None:
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.wrong(name, f"must be a number, not {describe(value)}")
            return default
        return value if self._within(name, value, least, most) else default

    def boolean(self, name: str, default: bool) -> bool:
        value = self.take(name)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        self.wrong(name, f"must be true or false, not {describe(value)}")
        return default

    def quantity(self, name: str) -> int | None:
        """Bytes of a Kubernetes quantity: `1Gi`, `1.5G` or a plain number."""
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return value
        match = _QUANTITY.fullmatch(value) if isinstance(value, str) and len(value) <= 20 else None
        if match is None:
            self.wrong(name, f"must be a size such as 1Gi, 512Mi or a number of bytes, not {describe(value)}")
            return None
        return int(float(match[1]) * _UNITS[match[2] or ""])

    def section(self, name: str, *, required: bool = False) -> Fields:
        """The fields of a nested mapping; an absent one reads as empty, so that its defaults apply."""
        return Fields(self.take(name, required=required), f"{self.path}.{name}", self.sink)

    def sections(self, name: str, most: int) -> list[Fields]:
        """A list of nested mappings."""
        items = self.items(name, most)
        return [Fields({} if item is None else item, path, self.sink) for path, item in items]

    def items(self, name: str, most: int) -> list[tuple[str, Any]]:
        """(path, value) of each item of a list of at most `most`."""
        value = self.take(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self.wrong(name, f"must be a list, not {describe(value)}")
            return []
        if len(value) > most:
            self.wrong(name, f"has {len(value)} items; at most {most} are allowed")
        return [(f"{self.path}.{name}[{index}]", item) for index, item in enumerate(value)]

    def pairs(self, name: str, most: int, longest: int = 63) -> dict[str, str]:
        """A mapping from text to text: labels, selectors."""
        value = self.take(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.wrong(name, f"must be a mapping, not {describe(value)}")
            return {}
        if len(value) > most:
            self.wrong(name, f"has {len(value)} entries; at most {most} are allowed")
        for key, item in value.items():
            if not isinstance(key, str) or not isinstance(item, str):
                self.wrong(f"{name}[{key}]", f"must be text, not {describe(item)}: put it in quotes")
            elif len(item) > longest:
                self.wrong(f"{name}[{key}]", f"is longer than {longest} characters")
        return {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, str)}

    def close(self) -> None:
        """Report every field that nobody read."""
        for name in self._value:
            if name not in self._names:
                self.wrong(str(name), f"unknown field{suggestion(str(name), self._names)}")

    def _within(self, name: str, value: float, least: float, most: float) -> bool:
        if least <= value <= most:
            return True
        self.wrong(name, f"must lie between {least} and {most}, not {value}")
        return False


def checked_text(value: object, path: str, sink: Sink, most: int, pattern: str, expected: str) -> str:
    """The string, or a Problem at `path` and the closest thing to it."""
    if not isinstance(value, str):
        quotes = ": put it in quotes" if isinstance(value, (bool, int, float)) else ""
        sink.add(path, f"must be text, not {describe(value)}{quotes}")
        return str(value)
    if not value:
        sink.add(path, "must not be empty")
    elif len(value) > most:
        sink.add(path, f"has {len(value)} characters; at most {most} are allowed")
    elif pattern and not re.fullmatch(pattern, value):
        sink.add(path, f"must be {expected}, not {value!r}")
    return value
