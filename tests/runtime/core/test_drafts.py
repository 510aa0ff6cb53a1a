"""Guesses come from what followed the same tokens before, and stop where they are wrong."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_runtime.core.drafts import LONGEST, SHORTEST, Drafter, worth

TOKENS = st.lists(st.integers(0, 3), max_size=60)


def drafter_of(tokens: list[int], *, chance: float | None = None) -> Drafter:
    drafter = Drafter(len(tokens))
    drafter.read(tokens, len(tokens))
    if chance is not None:
        drafter.chances = dict.fromkeys(drafter.chances, chance)
    return drafter


def continuation(tokens: list[int], most: int) -> list[int]:
    """The definition, word for word: after the latest earlier occurrence of the longest suffix."""
    for size in range(LONGEST, SHORTEST - 1, -1):
        for end in range(len(tokens) - 1, size - 1, -1):
            if len(tokens) > size and tokens[end - size : end] == tokens[-size:]:
                longer = list(tokens)
                for at in range(most):
                    longer.append(longer[end + at])
                return longer[len(tokens) :]
    return []


@given(TOKENS, st.integers(0, 16))
def test_a_proposal_follows_the_latest_earlier_occurrence_of_the_longest_suffix(tokens: list[int], most: int) -> None:
    assert drafter_of(tokens, chance=1.0).propose(tokens, most) == continuation(tokens, most)


@given(TOKENS, st.lists(st.integers(0, 60), max_size=5), st.integers(0, 60))
def test_reading_in_parts_is_reading_at_once(tokens: list[int], cuts: list[int], prompt_len: int) -> None:
    whole, parts = Drafter(prompt_len), Drafter(prompt_len)
    whole.read(tokens, len(tokens))
    for cut in [*cuts, len(tokens)]:
        parts.read(tokens, min(cut, len(tokens)))
    assert parts.propose(tokens, 16) == whole.propose(tokens, 16)
    assert parts.chances == whole.chances


@given(TOKENS, st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 16))
def test_no_more_is_proposed_than_asked_for_and_expected_of_it_no_more_than_that(
    prompt: list[int], said: list[int], most: int
) -> None:
    tokens = prompt + said
    drafter = Drafter(len(prompt))
    drafter.read(tokens, len(tokens))
    assert len(drafter.propose(tokens, most)) <= most
    assert 0 <= drafter.expected(most) <= len(drafter.propose(tokens, most))


def test_what_repeats_itself_is_followed_beyond_its_end() -> None:
    tokens = [9, 8, 1, 2, 3, 1, 2, 3, 1, 2]
    assert drafter_of(tokens, chance=1.0).propose(tokens, 7) == [3, 1, 2, 3, 1, 2, 3]


def test_a_sequence_that_quotes_its_prompt_proposes_more_and_more() -> None:
    prompt = list(range(100))
    drafter = Drafter(len(prompt))
    proposed = []
    for said in range(2, 30, 3):
        tokens = prompt + prompt[40 : 40 + said]
        drafter.read(tokens, len(tokens))
        proposed.append(len(drafter.propose(tokens, 16)))
    assert proposed == sorted(proposed)
    assert proposed[0] >= 1
    assert proposed[-1] == 16


def test_a_sequence_whose_guesses_are_wrong_proposes_nothing_until_it_repeats_again() -> None:
    rng = random.Random(1)
    tokens = [rng.randrange(6) for _ in range(300)]  # pairs come again and again, what follows them is chance
    drafter = Drafter(0)
    proposed = 0
    for until in range(100, 301):
        drafter.read(tokens, until)
        proposed += until > 200 and len(drafter.propose(tokens, 16)) > 0
    assert proposed < 25, "of a hundred"
    tokens += 2 * list(range(100, 130))
    drafter.read(tokens, len(tokens))
    assert len(drafter.propose(tokens, 16)) > 5


@pytest.mark.parametrize(("tokens", "chance"), [(1, 0.3), (8, 0.3), (24, 0.5), (72, 0.75), (1000, 0.98)])
def test_a_guess_has_to_be_the_surer_the_more_a_step_computes_anyway(tokens: int, chance: float) -> None:
    assert worth(tokens) == pytest.approx(chance, abs=0.01)
    repeats = [1, 2, 3, 4] * 5
    drafter = drafter_of(repeats, chance=0.9)
    expected = next(count for count in range(17) if 0.9 ** (count + 1) < worth(tokens) or count == 16)
    assert len(drafter.propose(repeats, 16, worth(tokens))) == expected


@pytest.mark.parametrize(("prompt_len", "judged"), [(0, True), (6, False)])
def test_what_the_prompt_says_is_no_judgement_on_guesses(prompt_len: int, judged: bool) -> None:
    tokens = [1, 2, 3, 1, 2, 4]
    drafter = Drafter(prompt_len)
    before = dict(drafter.chances)
    drafter.read(tokens, len(tokens))
    assert (drafter.chances != before) is judged
