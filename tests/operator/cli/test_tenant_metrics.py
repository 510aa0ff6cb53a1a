"""Shares of tenants from replicas' metrics: what adds up, and what the whole fleet knows once."""

from __future__ import annotations

from lorafleet_operator.cli.live_table import Exposition
from lorafleet_operator.cli.tenant_metrics import Board, Line, boards, rate
from tests.operator.cli.fairness_text import exposition


def of(*texts: str, base: str = "tiny") -> list[Exposition]:
    return [Exposition("models", base, f"{base}-{index}", text) for index, text in enumerate(texts)]


def only(found: list[Exposition]) -> Board:
    (board,) = boards(found)
    return board


def test_replicas_add_up_and_those_with_most_service_come_first() -> None:
    board = only(of(
        exposition(acme={"service": 30, "running": 1, "waiting": 2}, bolt={"service": 60}),
        exposition(acme={"service": 10, "running": 1}),
    ))  # fmt: skip

    assert [(line.tenant, line.service, line.share) for line in board.lines] == [("bolt", 60, 0.6), ("acme", 40, 0.4)]
    assert (board.lines[1].running, board.lines[1].waiting) == (2, 2)


def test_what_each_replica_knows_of_the_whole_fleet_counts_once() -> None:
    board = only(of(
        exposition({"floor": 5, "spread": 2, "bound": 9, "jain": 0.9}, acme={"counter": 7, "rejected": 4, "weight": 2}),
        exposition({"floor": 4, "spread": 3, "bound": 8, "jain": 0.8},
                   acme={"counter": 6, "rejected": 3, "weight": 2, "waiting": 1}),
    ))  # fmt: skip
    (line,) = board.lines

    assert (board.floor, board.spread, board.bound, board.jain) == (4, 3, 9, 0.8)
    assert (line.counter, line.lag, line.rejected, line.weight) == (7, 3, 4, 2)


def test_a_base_model_is_there_while_nobody_answers_or_another_program_does() -> None:
    assert only(of("", "not { metrics")) == Board("models", "tiny", 2, 0)
    assert only(of("")) == Board("models", "tiny", 1, 0)


def test_base_models_are_apart() -> None:
    found = [*of(exposition(acme={"service": 1}), base="b"), *of(exposition(acme={"service": 3}), base="a")]

    assert [(board.base, board.lines[0].share) for board in boards(found)] == [("a", 1.0), ("b", 1.0)]


def test_cached_tokens_are_no_work() -> None:
    (line,) = only(of(exposition(acme={"prompt": 10, "output": 4, "cached": 6}))).lines

    assert line.tokens == {"tiny-0": 14}


def test_a_rate_is_what_came_since_on_replicas_that_were_looked_at_then() -> None:
    before = Line("acme", tokens={"a": 100.0, "b": 50.0, "gone": 7.0})
    now = Line("acme", tokens={"a": 120.0, "b": 10.0, "joined": 1000.0})

    assert rate(now, before, ["a", "b", "gone"], 2.0) == (20 + 10) / 2
    assert rate(now, None, ["a"], 2.0) == 60
