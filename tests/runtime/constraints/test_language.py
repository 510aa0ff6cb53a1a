"""The library as it is used here: what is accepted, what is refused, and what its limits let through."""

from __future__ import annotations

import json
import re
from threading import Lock
from typing import Any

import pytest

from lorafleet_runtime.constraints.constraint import Constraint, Vocabulary
from lorafleet_runtime.constraints.language import (
    MOST_AHEAD,
    Language,
    Unfit,
    advance,
    first_token,
    mask,
    only_token,
    run_ahead,
)
from lorafleet_runtime.constraints.trial import refusal

END, OTHER_END, WORD, TWIN = 256, 257, 258, 259
VOCABULARY = Vocabulary([*(bytes([byte]) for byte in range(256)), b"", b"", b"true", b"true", b""], (END, OTHER_END))
WORDS = [b"a" * count for count in range(2, 40)] + [b'a",', b'aa"', b"\n\n", "é".encode(), "éé".encode(), b"\xc3a"]


@pytest.fixture(scope="module")
def language() -> Language:
    return Language(VOCABULARY)


def accepts(language: Language, constraint: Constraint, text: str) -> bool:
    """Whether the text may be written byte by byte, and may end there."""
    matcher = language.compile(constraint)
    try:
        advance(matcher, list(text.encode()))
    except Unfit:
        return False
    return allowed(mask(matcher)).issuperset((END, OTHER_END))


def allowed(bits: bytes) -> set[int]:
    return {index for index in range(8 * len(bits)) if bits[index // 8] >> index % 8 & 1}


def of_json(schema: Any) -> Constraint:
    return Constraint("json", json.dumps(schema))


def test_a_mask_has_a_bit_for_every_token_that_fits_and_no_other(language: Language) -> None:
    matcher = language.compile(Constraint("regex", "true|t[x-z]"))

    assert allowed(mask(matcher)) == {ord("t"), WORD, TWIN}
    assert first_token(mask(matcher)) == ord("t")
    advance(matcher, [TWIN])
    assert allowed(mask(matcher)) == {END, OTHER_END}


def test_the_end_may_come_where_the_text_may_end_and_nowhere_else(language: Language) -> None:
    matcher = language.compile(Constraint("regex", "a+b?"))
    ends = []
    for byte in b"aab":
        ends.append(END in allowed(mask(matcher)))
        advance(matcher, [byte])

    assert ends == [False, True, True]
    assert allowed(mask(matcher)) == {END, OTHER_END}


def test_what_must_come_is_taken_up_until_there_is_a_choice_or_the_end(language: Language) -> None:
    matcher, run = language.compile(Constraint("regex", "ab[cd]efg?")), list[int]()

    assert allowed(run_ahead(matcher, language.ends, run)) == {ord("c"), ord("d")}
    assert run == list(b"ab")
    advance(matcher, list(b"d"))
    assert allowed(run_ahead(matcher, language.ends, run)) == {ord("g"), END, OTHER_END}
    assert run == list(b"abef")
    advance(matcher, list(b"g"))
    assert allowed(run_ahead(matcher, frozenset(), run)) == {END, OTHER_END}


def test_an_end_that_must_come_is_left_to_the_sampler_and_a_run_has_a_bound() -> None:
    language = Language(Vocabulary([*(bytes([byte]) for byte in range(256)), b""], (END,)))
    matcher, run = language.compile(Constraint("regex", "a{20}")), list[int]()

    assert only_token(run_ahead(matcher, language.ends, run)) == ord("a")
    assert run == list(b"a" * MOST_AHEAD)
    run.clear()
    assert only_token(run_ahead(matcher, language.ends, run)) == END
    assert run == list(b"aaaa")


def test_a_text_that_nothing_continues_ends_behind_what_had_to_come() -> None:
    language = Language(Vocabulary([b"a", b"c", b""], (2,)))
    matcher, run = language.compile(Constraint("regex", "ab|ad")), list[int]()

    with pytest.raises(Unfit, match=r"no t(oken|ext)"):
        run_ahead(matcher, language.ends, run)
    assert run == [0]


@pytest.mark.parametrize("most", [0, 2, 11, 14, 19, 25, 33, 100])
def test_masks_of_bounded_strings_are_those_that_the_library_makes_without_slices(most: int) -> None:
    language = Language(Vocabulary([*VOCABULARY.tokens, *WORDS], VOCABULARY.ends))
    constraint = of_json({"type": "array", "items": {"type": "string", "maxLength": most}})
    sliced = language.compile(constraint)
    language._tokenizer = language._tokenizer.with_slices([])
    plain = language.compile(constraint)
    for byte in b'["' + b"a" * most + b'",':
        assert mask(sliced) == mask(plain)
        for matcher in (sliced, plain):
            advance(matcher, [byte])


def test_characters_are_written_whole(language: Language) -> None:
    matcher = language.compile(Constraint("regex", "[é-ü]"))
    advance(matcher, [0xC3])

    assert allowed(mask(matcher)) == set(range(0xA9, 0xBD))


@pytest.mark.parametrize(
    "text", ['{"a":1,"b":[true, null]}', '{"a": 1, "b": []}', '{"a":1}', '{"a":1, "more":{"x":"\\n"}}']
)
def test_json_has_at_most_one_space_after_commas_and_colons(language: Language, text: str) -> None:
    schema = of_json({"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]})

    assert accepts(language, schema, text)
    assert not accepts(language, schema, text.replace(":", ":  ", 1))
    assert not accepts(language, schema, " " + text)
    assert not accepts(language, schema, text.replace("{", "{\n", 1))


def test_a_schema_cannot_change_how_it_is_read(language: Language) -> None:
    asked = {"whitespace_flexible": True, "lenient": True, "item_separator": "\\s*,", "coerce_one_of": True}
    array = of_json({"type": "array", "items": {"type": "integer"}, "x-guidance": asked})

    assert accepts(language, array, "[1, 2]")
    assert not accepts(language, array, "[1 , 2]")
    with pytest.raises(Unfit):
        language.compile(of_json({"type": "array", "uniqueItems": True, "x-guidance": asked}))


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("^a$", "a"), ("a|bc", "bc"), ("a&b", "a&b"), (r"\d+/\d+", "1/2"), (r"\p{Lu}+", "É"), ("(?i)ab", "AB"),
        ('"q"', '"q"'), ("[^\n]*", "yz"), (r"\x41\\", "A\\"), (".*?b", "aab"), ("(?P<x>a)", "a"), ("a#b/@~", "a#b/@~"),
    ],
)  # fmt: skip
def test_a_regex_means_the_whole_text(language: Language, pattern: str, text: str) -> None:
    assert accepts(language, Constraint("regex", pattern), text)
    assert not accepts(language, Constraint("regex", pattern), text + "\n")
    assert not accepts(language, Constraint("regex", f"x(?:{pattern.strip('^$')})"), text)


@pytest.mark.parametrize(
    ("constraint", "texts"),
    [
        (Constraint("regex", r"\d"), {"7": True, "٧": False}),
        (Constraint("regex", r"[\d-]"), {"7": True, "٧": False, "-": True}),
        (Constraint("regex", r"\w"), {"x": True, "é": False}),
        (of_json({"type": "string", "pattern": r"^\d\w$"}), {'"7x"': True, '"٧x"': False, '"7é"': False}),
    ],
)
def test_digits_and_word_characters_are_ascii(
    language: Language, constraint: Constraint, texts: dict[str, bool]
) -> None:
    assert {text: accepts(language, constraint, text) for text in texts} == texts


@pytest.mark.parametrize("choice", ["a", 'é"\\ \n/', "b c", "\u2028", "😀", "{x} | $"])
def test_a_choice_is_written_as_it_is(language: Language, choice: str) -> None:
    constraint = Constraint("choice", json.dumps(["other", choice]))

    assert accepts(language, constraint, choice)
    assert accepts(language, constraint, "other")
    assert not accepts(language, constraint, choice + "r")


REFUSED = [
    (of_json({"not": {"type": "string"}}), "not"),
    (of_json({"type": "array", "uniqueItems": True}), "uniqueItems"),
    (of_json({"type": "strin"}), "strin"),
    (of_json({"type": "string", "format": "klingon"}), "klingon"),
    (of_json({"type": "string", "minLength": 5, "maxLength": 2}), "minLength"),
    (of_json({"enum": []}), "empty"),
    (of_json({"$ref": "https://example.com/x.json"}), "example.com"),
    (of_json({"$ref": "#"}), "no text fits"),
    (of_json({"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}), "oneOf"),
    (of_json({"type": "string", "pattern": "(?=a)b"}), "look-around"),
    (Constraint("regex", r"(a)\1"), "backreferences"),
    (Constraint("regex", r"\bfoo"), "lookarounds"),
    (Constraint("regex", "*"), "missing expression"),
    (Constraint("regex", "(" * 4000 + ")" * 4000), "nest"),
    (Constraint("grammar", "start: missing"), "missing"),
    (Constraint("grammar", 'start: "a" <|end|>'), "more than the grammar library"),
]


@pytest.mark.parametrize(("constraint", "reason"), REFUSED, ids=lambda value: f"{value}"[:50])
def test_what_cannot_be_obeyed_is_refused_with_a_reason_of_one_line(
    language: Language, constraint: Constraint, reason: str
) -> None:
    told = refusal(language, constraint, Lock())

    assert reason in told
    assert "\n" not in told
    assert len(told) <= 301
    with pytest.raises(Unfit, match=re.escape(told)):
        matcher = language.compile(constraint)
        mask(matcher)


HOSTILE = [
    of_json({"type": "integer", "multipleOf": 999983}),
    of_json({"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"type": "integer"}}} for j in range(16)]}
                       for i in range(16)]}),
    of_json({"type": "object", "properties": {f"p{i}": {} for i in range(9000)}}),
    Constraint("regex", "(a{1000}){1000}"),
    Constraint("regex", "a?" * 2000 + "a" * 2000),
]  # fmt: skip


@pytest.mark.parametrize("constraint", HOSTILE, ids=lambda value: f"{value}"[:60])
def test_what_takes_too_long_or_too_much_is_refused_and_this_process_lives(
    language: Language, constraint: Constraint
) -> None:
    assert refusal(language, constraint, Lock())
    assert accepts(language, Constraint("regex", "a"), "a")


@pytest.mark.parametrize(
    "constraint",
    [
        of_json({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}}),
        of_json({"enum": [f"value number {i}" for i in range(3000)]}),
        of_json({"type": "array", "minItems": 10**9}),
        of_json({"type": "string", "maxLength": 10**9}),
        Constraint("regex", r"\w{1,5000}"),
        Constraint("regex", "(a|b)*a(a|b){200}"),
    ],
    ids=lambda value: f"{value}"[:60],
)
def test_what_is_merely_large_is_not_refused(language: Language, constraint: Constraint) -> None:
    assert refusal(language, constraint, Lock()) == ""


def test_tokens_that_do_not_fit_are_named(language: Language) -> None:
    matcher = language.compile(Constraint("regex", "ab"))

    with pytest.raises(Unfit, match="token 99 "):
        advance(matcher, [97, 99])
    for nonsense in (-1, 2**31, 10**6):
        with pytest.raises(Unfit):
            advance(language.compile(Constraint("regex", "ab")), [nonsense])
