"""Attention gets the form that was measured for its heads, or the default; and is measured where engines work."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lorafleet_kernels.batch import HeadSizes
from lorafleet_kernels.gpu.attention.step import AttentionShape
from lorafleet_kernels.gpu.forms.attention import DecodeTiles, PrefillTiles
from lorafleet_kernels.gpu.tuning.attention.lookup import Heads, Phase, Sequences, attention_forms, why_not
from lorafleet_kernels.gpu.tuning.attention.shapes import sequences_to_measure
from lorafleet_kernels.reference_fp8 import FP8
from tests.kernels.gpu.tuning.tunings import CARD, HEADS, attention_tuning, tuning

SIZES = HeadSizes(32, 8, 128, 1e-5)
MEASURED = DecodeTiles(32, 4, 5, 3)
DECODE, PROMPTS = HEADS.defaults(CARD.capability)


def test_what_was_measured_first_serves_its_phase_and_the_default_the_other() -> None:
    known = [tuning(8, 8), attention_tuning(MEASURED), attention_tuning(DecodeTiles(32, 4, 5, 1))]

    assert attention_forms(HEADS, known, CARD.capability) == (MEASURED, PROMPTS)
    assert attention_forms(HEADS, [], CARD.capability) == (DECODE, PROMPTS)
    other = PrefillTiles(64, 32, 4, 3)
    assert attention_forms(HEADS, [attention_tuning(other)], CARD.capability) == (DECODE, other)


@pytest.mark.parametrize(
    "other",
    [
        replace(HEADS, heads=64), replace(HEADS, kv_heads=4), replace(HEADS, size=64), replace(HEADS, kv="fp8"),
        Heads(32, 8, 128, "float16", "float16"),
    ],
)  # fmt: skip
def test_what_was_measured_of_other_heads_says_nothing(other: Heads) -> None:
    assert attention_forms(other, [attention_tuning(MEASURED)], CARD.capability)[0] != MEASURED


def test_heads_are_named_by_their_types() -> None:
    assert Heads.of(SIZES, torch.bfloat16, torch.bfloat16) == HEADS
    assert Heads.of(SIZES, torch.float16, FP8) == Heads(32, 8, 128, "float16", "fp8")
    assert Heads.of(SIZES, torch.float16, FP8).types == (torch.float16, FP8)
    with pytest.raises(ValueError, match="'float32' beside 'bfloat16'"):
        Heads.of(SIZES, torch.bfloat16, torch.float32)


def test_the_split_of_decode_rows_follows_from_what_was_measured() -> None:
    forms = attention_forms(HEADS, [attention_tuning(MEASURED)], CARD.capability)

    shape = AttentionShape.of(SIZES, torch.bfloat16, CARD.capability, CARD.processors, forms=forms)

    assert shape.decode == MEASURED
    assert shape.cut.programs == CARD.processors * 3 // 8
    usual = AttentionShape.of(SIZES, torch.bfloat16, CARD.capability, CARD.processors)
    assert usual.cut.programs == CARD.processors * usual.decode.resident // 8


def test_only_what_ships_may_be() -> None:
    assert why_not(attention_tuning(MEASURED), CARD.capability) == ""
    reason = why_not(attention_tuning(DecodeTiles(512, 4, 5, 1)), CARD.capability)
    assert reason == "no attention of n512 w4 s5, 1 programs a processor ships for decode over heads of 128 in bfloat16"


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize(("seqs", "tokens", "longest"), [(64, 512, 131072), (1, 1, 32), (256, 2048, 1024), (2, 3, 1)])
def test_no_sequence_is_longer_than_there_are(phase: Phase, seqs: int, tokens: int, longest: int) -> None:
    shapes = sequences_to_measure(phase, seqs, tokens, longest)

    assert 1 <= len(shapes) == len(set(shapes)) <= 4
    assert all(s.cached >= 0 and s.cached + s.new <= longest for s in shapes)
    assert all(s.count * s.new <= max(tokens, seqs) for s in shapes)


def test_decodes_are_measured_alone_and_in_the_largest_batch() -> None:
    assert sequences_to_measure(Phase.DECODE, 64, 512, 8192) == [
        Sequences(1, 1, 4095), Sequences(8, 1, 4095), Sequences(8, 1, 511), Sequences(64, 1, 511),
    ]  # fmt: skip
    assert sequences_to_measure(Phase.PROMPTS, 64, 512, 8192) == [
        Sequences(1, 512, 0), Sequences(1, 512, 3584), Sequences(4, 128, 0),
    ]  # fmt: skip
