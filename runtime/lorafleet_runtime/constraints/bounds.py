"""What is too large to be compiled, seen from its text alone. Knows no library."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from lorafleet_runtime.constraints.constraint import Constraint

MAX_CHARACTERS = 65536
MAX_REGEX_CHARACTERS = 8192
MAX_CHOICES = 1024
MAX_REPETITIONS = 10_000
"""Of a regex with its counted repetitions written out: an automaton's state may hold all of them, and a step looks at
thousands of states. `(a{1000}){1000}` costs 1.6 s and 400 MB for one token."""

_COUNTS = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")

_GROUP = re.compile(r"\((\?(?:P?<\w*>|[a-zA-Z-]*:))?")


def reason_too_large(constraint: Constraint) -> str | None:
    """Why it is refused, as the end of a sentence; None when it may be compiled."""
    text, kind = constraint.text, constraint.kind
    most = MAX_REGEX_CHARACTERS if kind == "regex" else MAX_CHARACTERS
    if len(text) > most:
        return f"has {len(text)} characters; at most {most} are allowed"
    if kind == "choice" and (count := len(json.loads(text))) > MAX_CHOICES:
        return f"has {count} choices; at most {MAX_CHOICES} are allowed"
    patterns = [text] if kind == "regex" else _patterns(json.loads(text)) if kind == "json" else ()
    for pattern in patterns:
        if (size := written_out(pattern)) > MAX_REPETITIONS:
            what = "it" if kind == "regex" else f"its pattern {pattern:.60}"
            return f"is too large: {what} has {size} parts, repetitions written out; the most is {MAX_REPETITIONS}"
    return None


def written_out(pattern: str) -> int:
    """How many characters and classes a regex has when `x{3}` is written xxx; an open end counts as its beginning.

    Of what is no regex, some number: the library says what is wrong with it."""
    groups = [0]  # parts of every open group so far
    last = 0  # parts of what a repetition would repeat
    at = 0
    while at < len(pattern):
        character = pattern[at]
        counts = _COUNTS.match(pattern, at) if character == "{" else None
        if counts is not None:
            times = max(int(number or 0) for number in counts.groups(default="0"))
            groups[-1] += last * (times - 1) if times else 0
            last *= max(times, 1)
            at = counts.end()
            continue
        if character == "(":
            groups.append(0)
            last = 0
            at = _GROUP.match(pattern, at).end() - 1  # type: ignore[union-attr]  # it matches "(" alone, too
        elif character == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif character not in "?*+|":
            at = _end_of_class(pattern, at) if character == "[" else at + (character == "\\")
            last = 1
            groups[-1] += 1
        at += 1
    return sum(groups)


def _end_of_class(pattern: str, at: int) -> int:
    """Where the `]` is that ends a class; classes may be nested."""
    depth = 0
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
        elif pattern[at] == "[":
            depth += 1
        elif pattern[at] == "]":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return at


def _patterns(schema: Any) -> Iterator[str]:
    """Every regex in a schema, wherever it stands: what merely looks like one has to be small too."""
    if isinstance(schema, list):
        for item in schema:
            yield from _patterns(item)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if key == "pattern" and isinstance(value, str):
                yield value
            if key == "patternProperties" and isinstance(value, dict):
                yield from value
            yield from _patterns(value)
