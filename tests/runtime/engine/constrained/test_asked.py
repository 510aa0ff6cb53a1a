"""Who is blamed for a mask that does not come."""

from __future__ import annotations

from lorafleet_runtime.engine.constrained.asked import Asked


def test_the_process_says_whose_mask_it_is_at_and_else_the_next_one_waits() -> None:
    answered: set[str] = set()
    asked = Asked(answered.__contains__)
    asked.add(["a", "b"])
    asked.add(["c", "d"])

    assert [asked.slow(making) for making in (0, 1, 2, 3, 4)] == ["a", "a", "b", "c", "d"]
    answered.add("a")
    assert [asked.slow(making) for making in (0, 1, 3)] == ["b", "b", "c"]
    asked.add(["e"])
    assert asked.slow(5) == "e"
    answered |= set("bcde")
    assert asked.slow(5) is None


def test_requests_that_a_new_process_opens_are_not_counted() -> None:
    asked = Asked(lambda request_id: False)
    asked.add(["a", "b"])
    asked.begin(["b"])
    asked.add(["c"])

    assert [asked.slow(making) for making in (0, 1, 2)] == ["b", "c", "b"]
