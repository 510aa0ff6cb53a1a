"""A file of tunings says what was found, and one that is damaged says where."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from lorafleet_kernels.gpu.tuning.document import Document, Malformed, from_json, to_json
from tests.kernels.gpu.tuning.tunings import CARD, run, tuning

DOCUMENT = Document(CARD, "abc", (run([tuning(8, 8), tuning(64, 16)]), run([tuning(64, 64)], "2026-01-03")))


def test_what_was_written_is_read() -> None:
    assert from_json(to_json(DOCUMENT)) == DOCUMENT


def test_a_groups_form_is_one_line_to_read() -> None:
    (line, *_) = [line for line in to_json(DOCUMENT).splitlines() if '"o": {' in line]

    for part in ('"variant": "rows"', '"shrink": "1x16x128 w4 s5"', '"microseconds": 10.0'):
        assert part in line


def test_the_latest_run_comes_first() -> None:
    assert [t.step.segments for t in DOCUMENT.tunings] == [64, 8, 16]


def test_a_new_run_takes_the_place_of_what_was_known_of_its_steps() -> None:
    again = run([tuning(64, 64, splits=4), tuning(8, 8, splits=4)], "2026-01-04")

    document = DOCUMENT.with_run(again)

    assert [r.about["date"] for r in document.runs] == ["2026-01-02", "2026-01-04"]
    assert [t.step.segments for t in document.tunings] == [64, 8, 16]
    assert document.tunings[1].found["o"].config.splits == 4


def _group(record: Any) -> dict[str, Any]:
    found: dict[str, Any] = record["runs"][0]["tunings"][1]["groups"]["qkv"]
    return found


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda r: r.pop("format"), "format: missing"),
        (lambda r: r.update(format=2), "format 2: this release reads 1"),
        (lambda r: r.update(card=[]), r"card: \[\] is no dict"),
        (lambda r: r["card"].update(capability=[9]), r"card.capability: \[9\] is no pair of numbers"),
        (lambda r: r["card"].update(processors=True), "card.processors: True is no int"),
        (lambda r: r.update(kernels=None), "kernels: None is no str"),
        (lambda r: r["runs"][0]["about"].update(date=3), r"runs\[0\].about: all values must be strings"),
        (lambda r: r["runs"].append(7), r"runs\[2\]: must be an object"),
        (lambda r: _group(r).update(variant="cells"), r"groups.qkv.variant: 'cells' is none of rows, tiles"),
        (lambda r: _group(r).update(shrink="16x32"), r"runs\[0\].tunings\[1\].groups.qkv.shrink: '16x32' is no form"),
        (lambda r: _group(r).update(splits=0), "groups.qkv.splits: 0 must be at least 1"),
        (lambda r: _group(r).update(widths=[]), r"groups.qkv.widths: \[\] are no widths"),
        (lambda r: _group(r).update(microseconds=float("nan")), "groups.qkv.microseconds: nan is no time"),
        (lambda r: _group(r).update(shrink="64x32x64 w8 s5"), "share its work items"),
        (lambda r: r["runs"][0]["tunings"][1].update(groups={}), r"forms of \[\]"),
    ],
)
def test_a_damaged_file_is_refused_by_the_fields_name(damage: Callable[[Any], object], said: str) -> None:
    record = json.loads(to_json(DOCUMENT))
    damage(record)

    with pytest.raises(Malformed, match=said):
        from_json(json.dumps(record))


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        from_json(text)
