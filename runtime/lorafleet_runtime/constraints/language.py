"""The library (llguidance) over one model's vocabulary: constraints compiled to matchers, matchers to masks.

JSON is written compactly: nothing between its parts but at most one space after a comma and a colon, as models write
it; so there is no white space to go on with for ever."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, regex_to_lark

from lorafleet_runtime.constraints.constraint import Constraint, Vocabulary

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# Over what a schema says of itself under "x-guidance", too.
_JSON: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "coerce_one_of": False,
    "lenient": False,
}
_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_items_in_row=10_000,  # 2,500 optional properties
    max_lexer_states=10_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
_CHARACTER = r'[^"\\\x00-\x1F\x7F]'
_SLICES = [r"[\x20\x0A\x0D\x09]+", *(f"{_CHARACTER}{{1,{most}}}" for most in (10, 13, 16, 20, 30)), f"{_CHARACTER}+"]
"""Tokens that are allowed together wherever all texts of a kind are. The library's own, and 13, 16 and 20: with as many
characters left of a bounded string, a mask takes a third to a tenth of the time."""
MOST_AHEAD = 16
"""Tokens of a run: a step computes all of them."""
AHEAD_SECONDS = 0.02
"""Nor does a run go on for longer: others' masks wait, and whoever asked for this one gives up after a second."""
_REASON_CHARACTERS = 300
_NO_TEXT = ("NoExtension", "NoExtensionBias")
_POINTER = re.compile(r"\s*(\^+|\d+ \|.*|\||<.*|$)\s*$")
"""Lines of an error that show where in a text it is, or how much the library keeps to itself."""


class Unfit(Exception):
    """A constraint cannot be compiled, or a token does not fit it; the text says why."""


class Language:
    """One vocabulary. `compile` gives matchers at the beginning of the text, to be copied for each request."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.ends = frozenset(vocabulary.ends)
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Tokens(vocabulary)), len(vocabulary.tokens), list(vocabulary.ends), slices=_SLICES
        )

    def compile(self, constraint: Constraint) -> LLMatcher:
        """Raises Unfit."""
        try:
            grammar = _GRAMMARS[constraint.kind](constraint.text)
        except ValueError as error:
            raise Unfit(_short(f"{error}")) from None
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        _check(matcher)
        return matcher


def advance(matcher: LLMatcher, tokens: Sequence[int]) -> None:
    """Raises Unfit when the tokens do not fit."""
    if not tokens:
        return
    try:
        taken = matcher.try_consume_tokens(list(tokens))
    except (OverflowError, ValueError) as error:  # no id at all
        raise Unfit(f"token ids {list(tokens)[:8]}: {error}") from None
    _check(matcher)
    if taken < len(tokens):
        raise Unfit(f"token {tokens[taken]} does not fit")


def mask(matcher: LLMatcher) -> bytes:
    """One bit a token, in whole 32-bit words. Raises Unfit when no token fits."""
    bits = matcher.compute_bitmask()
    _check(matcher)
    if not bits.strip(b"\0"):
        raise Unfit("no token of the vocabulary fits")
    return bits


def run_ahead(matcher: LLMatcher, ends: Container[int], run: list[int]) -> bytes:
    """Take up the tokens that must come, as nothing else fits, up to `MOST_AHEAD` of them; they are added to `run`.
    Returns the mask of the one after them. Raises Unfit when no token fits there.

    A text's end is no such token: it is the sampler's, as a stop token may be held back."""
    until = time.monotonic() + AHEAD_SECONDS
    while True:
        bits = mask(matcher)
        token = only_token(bits)
        if token is None or token in ends or len(run) == MOST_AHEAD or time.monotonic() > until:
            return bits
        advance(matcher, [token])
        run.append(token)


def only_token(bits: bytes) -> int | None:
    """The id that a mask allows, where it is one alone."""
    number = int.from_bytes(bits, "little")
    return number.bit_length() - 1 if number and not number & (number - 1) else None


def first_token(bits: bytes) -> int:
    """The lowest id that a mask allows."""
    at = next(index for index, byte in enumerate(bits) if byte)
    return 8 * at + (bits[at] & -bits[at]).bit_length() - 1


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise Unfit(_short(matcher.get_error()))


def _short(reason: str) -> str:
    """One line: what follows may be the library's own trace."""
    if reason.startswith("panic:"):
        return "it is more than the grammar library can compile"
    reason = reason.removesuffix("<non-verbose/>").strip()
    if reason in _NO_TEXT:
        return "no text fits it"
    told = " ".join(line.strip() for line in reason.splitlines() if not _POINTER.match(line)).removeprefix("at 1(8): ")
    if "regex parse error" in told:  # and then the whole regex
        told = f"regex parse error: {told.rpartition('error: ')[2]}"
    return told if len(told) <= _REASON_CHARACTERS else f"{told[:_REASON_CHARACTERS]}…"


def _json(text: str) -> str:
    return LLMatcher.grammar_from_json_schema(text, overrides=_JSON)


def _regex(text: str) -> str:
    """As in JSON Schema, `\\d` and `\\w` mean ASCII: who asks for a digit wants to read one."""
    return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(text, 'dw')}/")


def _choice(text: str) -> str:
    """Of a JSON list of strings; a quoted string of a Lark grammar is one of JSON."""
    return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in json.loads(text)))


_GRAMMARS: dict[str, Callable[[str], str]] = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": LLMatcher.grammar_from_lark,
}


class _Tokens:
    """What the library asks of a tokenizer. Its texts are all bytes, which it never needs to be split by merges."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = vocabulary.tokens
        self.eos_token_id = vocabulary.ends[0]
        self.bos_token_id = None
        self.special_token_ids = [i for i, token in enumerate(vocabulary.tokens) if not token]
        self._of_bytes = {token[0]: i for i, token in enumerate(vocabulary.tokens) if len(token) == 1}

    def __call__(self, text: bytes) -> list[int]:
        return [self._of_bytes[byte] for byte in text if byte in self._of_bytes]
