"""One form of attention serves all contexts that were measured, if it is right in all and faster over all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from lorafleet_kernels.gpu.forms.attention import DecodeTiles
from lorafleet_kernels.gpu.tuning.attention.lookup import AttentionForm, AttentionTuning, Heads, Phase, Sequences
from lorafleet_kernels.gpu.tuning.attention.search import tune_attention
from tests.kernels.gpu.tuning.tunings import CARD, HEADS
from tests.kernels.gpu.tuning.virtual import Bench, endless

SHAPES = (Sequences(1, 1, 4095), Sequences(64, 1, 511))
FP8 = replace(HEADS, kv="fp8")
KINDS = [(heads, phase) for heads in (HEADS, FP8) for phase in Phase]
Judge = Callable[[AttentionForm], float]


def tune(
    heads: Heads, phase: Phase, *seconds: Judge, wrong: Callable[[AttentionForm], bool] = lambda form: False,
    say: Callable[[str], None] = print,
) -> AttentionTuning:  # fmt: skip
    """Over one of `SHAPES` for each judge; in the last some forms are wrong."""
    benches: list[Bench[AttentionForm]] = [Bench(judge) for judge in seconds]
    benches[-1].wrong = wrong

    def clock(run: Callable[[], None], calls: int, /, repeats: int = 7) -> float:
        run()
        (ran,) = [bench for bench in benches if bench._running]
        return ran.seconds(ran._running.pop())

    shapes = SHAPES[: len(seconds)]
    return tune_attention(heads, phase, shapes, benches, CARD.capability, clock, endless(), say)


def _two_but_one_for(wanted: AttentionForm, form: AttentionForm) -> float:
    return 1.0 if form == wanted else 2.0


@pytest.mark.parametrize(("heads", "phase"), KINDS)
def test_the_fastest_form_is_found_whichever_it_is(heads: Heads, phase: Phase) -> None:
    for wanted in heads.candidates(phase, CARD.capability)[1::3]:
        found = tune(heads, phase, partial(_two_but_one_for, wanted))

        assert (found.heads, found.form) == (heads, wanted)
        assert (found.seconds, found.default_seconds) == (1.0, 2.0)


def test_what_gains_less_than_noise_over_all_contexts_stays_the_default() -> None:
    """Half as much again in one, and as much lost in the other, is no gain."""
    default = HEADS.defaults(CARD.capability)[0]

    found = tune(
        HEADS, Phase.DECODE,
        lambda form: 1.0 if form == default else 2 / 3,
        lambda form: 1.0 if form == default else 1.5,
    )  # fmt: skip

    assert found.form == default
    assert [(m.sequences, m.seconds, m.default_seconds) for m in found.measured] == [(s, 1.0, 1.0) for s in SHAPES]


def test_each_context_is_told_with_its_own_gain() -> None:
    wide = replace(HEADS.defaults(CARD.capability)[0], resident=6)

    found = tune(HEADS, Phase.DECODE, lambda form: 1.0 if form == wide else 4.0, lambda form: 3.0)

    assert found.form == wide
    assert [(m.seconds, m.default_seconds) for m in found.measured] == [(1.0, 4.0), (3.0, 3.0)]
    assert found.default_seconds / found.seconds == pytest.approx(2.0)


def test_a_form_that_is_faster_and_wrong_in_one_context_never_wins() -> None:
    said: list[str] = []

    def splits(form: AttentionForm) -> float:
        return 1 / form.resident if isinstance(form, DecodeTiles) else 1.0

    found = tune(
        HEADS, Phase.DECODE, splits, splits,
        wrong=lambda form: isinstance(form, DecodeTiles) and form.resident == 6, say=said.append,
    )  # fmt: skip

    assert isinstance(found.form, DecodeTiles)
    assert found.form.resident == 4
    assert any(line.endswith("w4 s5, 6 programs a processor") and "its result is wrong" in line for line in said)


def test_a_default_that_is_never_the_same_is_refused() -> None:
    default = HEADS.defaults(CARD.capability)[0]
    runs = iter(range(1000))

    with pytest.raises(ValueError, match="another result every time"):
        tune(HEADS, Phase.DECODE, lambda form: 1.0, wrong=lambda form: form == default and next(runs) > 0)
