from __future__ import annotations

from lorafleet_runtime.engine.constrained.turns import Turns


def test_tenants_take_turns_and_each_keeps_its_order() -> None:
    turns: Turns[str] = Turns()
    for tenant, item in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("b", "b2")]:
        turns.add(tenant, item)

    assert [turns.next() for _ in range(6)] == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert not turns


def test_what_is_dropped_has_no_turn() -> None:
    turns: Turns[int] = Turns()
    for item in range(4):
        turns.add("even" if item % 2 == 0 else "odd", item)
    turns.drop(lambda item: item in (0, 1, 3))

    assert turns.next() == 2
    assert not turns
