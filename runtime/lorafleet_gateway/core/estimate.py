"""How many tokens a request will take, from its bytes: good enough to reserve, to be settled by the real number.

Here a field of a wrong type counts as absent: the replica will refuse it, and what was reserved is given back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from msgspec import Raw

BYTES_PER_TOKEN = 4  # of JSON: English text has somewhat more, most others less
_ABSENT = Raw(b"null")
_WRONG = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Estimate:
    """`prompt` counts each prompt once, as usage does, and is exact for token ids; `output` is over all `choices`."""

    prompt: int
    output: int
    choices: int

    @property
    def total(self) -> int:
        """What to reserve: at least 1."""
        return max(1, self.prompt + self.output)


def estimate(fields: Mapping[str, Raw], average_output: float) -> Estimate:
    """The estimate for a body's fields. A choice that has no limit counts as `average_output` tokens."""
    prompts, prompt = prompts_in(fields.get("prompt", _ABSENT))
    if "messages" in fields:
        prompt += _tokens_of(bytes(fields["messages"]))
    choices = prompts * max(1, _number(fields, "n") or 1, _number(fields, "best_of") or 1)
    limits = (_number(fields, name) for name in ("max_completion_tokens", "max_tokens"))
    most = next((limit for limit in limits if limit is not None), average_output)
    return Estimate(prompt, round(max(0, most) * choices), choices)


def prompts_in(raw: Raw) -> tuple[int, int]:
    """How many prompts the field `prompt` holds, at least 1, and about how many tokens they have together."""
    text = bytes(raw)
    if text[:1] != b"[":
        return 1, _tokens_of(text) if text[:1] == b'"' else 0
    if text[1:].lstrip()[:1].isdigit():
        return 1, text.count(b",") + 1  # without decoding what may be a million numbers
    try:
        prompts = msgspec.json.decode(text, type=list[Raw])
        return max(1, len(prompts)), sum(prompts_in(prompt)[1] for prompt in prompts)
    except _WRONG:
        return 1, _tokens_of(text)


def _tokens_of(text: bytes) -> int:
    return -(-len(text) // BYTES_PER_TOKEN)


def _number(fields: Mapping[str, Raw], name: str) -> int | None:
    try:
        return msgspec.json.decode(fields.get(name, _ABSENT), type=int | None)
    except _WRONG:
        return None
