"""A file of tunings says what was found, and one that is damaged says where."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lorafleet_kernels.gpu.forms.attention import DecodeTiles, PrefillTiles
from lorafleet_kernels.gpu.tuning.document import Document, Tuning, from_json, to_json
from lorafleet_kernels.gpu.tuning.fields import Malformed
from tests.kernels.gpu.tuning.tunings import CARD, HEADS, SHAPES, attention_tuning, run, tuning

FP8 = tuning(8, 8, shapes=replace(SHAPES, weights="fp8"))
PROMPTS = attention_tuning(PrefillTiles(128, 64, 8, 3), heads=replace(HEADS, kv="fp8"))
DOCUMENT = Document(
    CARD, "abc", (run([tuning(8, 8), tuning(64, 16)]), run([attention_tuning(), PROMPTS, FP8], "2026-01-03"))
)


def test_what_was_written_is_read() -> None:
    assert from_json(to_json(DOCUMENT)) == DOCUMENT


def test_a_groups_form_is_one_line_to_read() -> None:
    (line, *_) = [line for line in to_json(DOCUMENT).splitlines() if '"o": {' in line]

    for part in ('"variant": "rows"', '"shrink": "1x16x128 w4 s5"', '"microseconds": 10.0'):
        assert part in line


def test_so_is_each_time_of_attention() -> None:
    (line, *_) = [line for line in to_json(DOCUMENT).splitlines() if '"cached": 511' in line]

    assert '"sequences": 8, "new": 1, "cached": 511, "microseconds": 10.0, "default_microseconds": 12.5' in line


def test_the_latest_run_comes_first() -> None:
    assert DOCUMENT.tunings == (attention_tuning(), PROMPTS, FP8, tuning(8, 8), tuning(64, 16))


def test_a_new_run_takes_the_place_of_what_was_known_of_the_same() -> None:
    """That is: of the same step, of adapters of the same type; and of the same heads in the same phase."""
    again: list[Tuning] = [tuning(8, 8, splits=4), attention_tuning(DecodeTiles(32, 4, 5, 3))]

    document = DOCUMENT.with_run(run(again, "2026-01-04"))

    assert [r.about["date"] for r in document.runs] == ["2026-01-02", "2026-01-03", "2026-01-04"]
    assert document.tunings == (*again, PROMPTS, FP8, tuning(64, 16))


def test_a_run_of_which_nothing_is_left_is_gone() -> None:
    document = DOCUMENT.with_run(run([tuning(8, 8), tuning(64, 16)], "2026-01-04"))

    assert [r.about["date"] for r in document.runs] == ["2026-01-03", "2026-01-04"]


def _attention(record: Any) -> dict[str, Any]:
    found: dict[str, Any] = record["runs"][1]["tunings"][0]
    return found


def _group(record: Any) -> dict[str, Any]:
    found: dict[str, Any] = record["runs"][0]["tunings"][1]["groups"]["qkv"]
    return found


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda r: r.pop("format"), "format: missing"),
        (lambda r: r.update(format=1), "format 1: this release reads 2"),
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
        (lambda r: r["runs"][0]["tunings"][1].update(of="norms"), r"tunings\[1\].of: 'norms' is none of lora, att"),
        (lambda r: r["runs"][0]["tunings"][1].pop("weights"), r"runs\[0\].tunings\[1\].weights: missing"),
        (lambda r: _attention(r).update(phase="rest"), r"tunings\[0\].phase: 'rest' is none of decode, prompts"),
        (lambda r: _attention(r).update(form="m64 n32 w4 s3"), r"tunings\[0\].form: 'm64 n32 w4 s3' is no form of dec"),
        (lambda r: _attention(r).update(phase="prompts"), "form: 'n32 w4 s5' is no form of prompts' attention"),
        (lambda r: _attention(r).update(resident=0), "resident: 0 must be at least 1"),
        (lambda r: _attention(r).update(measured=[]), "n32 w4 s5 was measured over nothing"),
        (lambda r: _attention(r)["measured"][0].update(cached=-1), r"measured\[0\].cached: -1 must be at least 0"),
        (lambda r: _attention(r)["heads"].update(kv="int8"), "keys and values in 'int8' beside 'bfloat16'"),
        (lambda r: _attention(r)["heads"].update(dtype="bits"), "the latter is one of"),
        (lambda r: _attention(r)["heads"].update(kv_heads=3), "32 heads are no equal groups of 3"),
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
