"""The thread count is measured on whole decode steps."""

from __future__ import annotations

import pytest

from lorafleet_runtime.engine import threads


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])],
)
def test_candidates_are_powers_of_two_and_the_core_count(cores: int, expected: list[int]) -> None:
    assert threads.candidates(cores) == expected
