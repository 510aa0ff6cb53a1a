"""What a request's output must be, and what has to be known of a model to see to it."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["json", "regex", "choice", "grammar"]


class Vocabulary(msgspec.Struct, frozen=True, tag=True):
    """What each token adds to the text, b"" for special ones, and which ids end it: needed for constraints alone."""

    tokens: list[bytes]
    ends: tuple[int, ...]


class Constraint(msgspec.Struct, frozen=True):
    """What the output must be, and nothing else: `kind` json (`text` is a schema), regex, choice (a JSON list of
    strings) or grammar (Lark)."""

    kind: Kind
    text: str
