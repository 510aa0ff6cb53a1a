from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_runtime.constraints.bounds import MAX_REPETITIONS, reason_too_large, written_out
from lorafleet_runtime.constraints.constraint import Constraint


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("", 0),
        ("abc", 3),
        ("a{3}", 3),
        ("a{2,5}b", 6),
        ("a{4,}", 4),
        ("a{0}b", 2),
        ("(ab|c){10}", 30),
        ("((a{10}){10}){10}", 1000),
        (r"\d{3}-\{7}", 7),
        ("[a{9}]{2}", 2),
        ("[[a-z]&&[^b]]{5}", 5),
        (r"[\]x{4}]{3}", 3),
        ("(?:ab){3}(?i:c){2}(?P<d>e){2}", 10),
        ("x{a}", 4),
    ],
)
def test_a_regex_is_measured_with_its_repetitions_written_out(pattern: str, size: int) -> None:
    assert written_out(pattern) == size


@given(st.text(st.sampled_from("ab()[]{}0123,\\|?*+^"), max_size=30))
def test_any_text_is_measured(pattern: str) -> None:
    assert written_out(pattern) >= 0


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (Constraint("regex", "(a{101}){100}"), "it has 10100 parts"),
        (Constraint("regex", "a" * 8193), "8193 characters"),
        (Constraint("json", json.dumps({"anyOf": [{"pattern": "x{10001}"}]})), "its pattern x{10001} has 10001"),
        (Constraint("json", json.dumps({"patternProperties": {"^(ab{99}){999}$": {}}})), "99902 parts"),
        (Constraint("json", json.dumps({"const": "x" * 65536})), "characters"),
        (Constraint("choice", json.dumps(["x"] * 1025)), "1025 choices"),
        (Constraint("grammar", "x" * 65537), "65537 characters"),
    ],
)
def test_what_is_too_large_is_refused_with_its_size(constraint: Constraint, reason: str) -> None:
    assert reason in (reason_too_large(constraint) or "")


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("regex", f"a{{{MAX_REPETITIONS}}}"),
        Constraint("json", json.dumps({"properties": {"pattern": {"type": "string", "maxLength": 10**9}}})),
        Constraint("choice", json.dumps(["x"] * 1024)),
    ],
)
def test_what_is_just_small_enough_is_not(constraint: Constraint) -> None:
    assert reason_too_large(constraint) is None
