"""What replicas and gateways tell each other: deltas that merge, own columns that nobody may claim, and nonsense."""

from __future__ import annotations

import pytest

from lorafleet_runtime.core.fairness.counters import LARGEST, CounterTable, Table
from lorafleet_runtime.frontend.tenant_board import (
    FORGET_SECONDS,
    Exchange,
    GatewayUsage,
    Nonsense,
    TenantBoard,
    Usage,
    shown,
)
from lorafleet_runtime.protocol import Sharing, TenantRow


def board_of(incarnation: str, **service: int) -> tuple[TenantBoard, list[Table]]:
    """A replica that has given this, and what its engine is told."""
    told: list[Table] = []
    board = TenantBoard(incarnation, told.append)
    table = CounterTable(incarnation)
    for tenant, amount in service.items():
        table.spend(tenant, amount)
    rows = [TenantRow(tenant, 1.0, amount, waiting=1) for tenant, amount in service.items()]
    board.took(Sharing("VTC", table=table.since(0), tenants=rows))
    return board, told


def test_a_gateway_carries_service_from_one_replica_to_the_other() -> None:
    one, _ = board_of("one", acme=100)
    two, told = board_of("two", acme=30, globex=5)
    gateway = CounterTable()

    for board in (one, two, one):
        answer = board.exchange(Exchange(1, table=gateway.since(0)), 0.0)
        table = answer["table"]
        assert isinstance(table, Table)
        gateway.merge(table)

    assert (one.counter("acme"), two.counter("acme"), one.counter("globex")) == (130, 130, 5)
    assert [table.service for table in told] == [{"one": {"acme": 100}}]


def test_an_answer_holds_what_changed_since_the_last_and_everything_for_another_incarnation() -> None:
    board, _ = board_of("one", acme=100, globex=5)
    first = board.exchange(Exchange(1), 0.0)
    at = first["at"]
    assert isinstance(at, int)

    again = board.exchange(Exchange(1, since=at, incarnation="one"), 0.0)
    of_another = board.exchange(Exchange(1, since=at, incarnation="the process before"), 0.0)

    assert not again["table"]
    assert of_another["table"] == first["table"]


def test_what_is_too_much_for_one_message_comes_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorafleet_runtime.frontend.tenant_board.MOST_CELLS", 3)
    board, _ = board_of("one", **{f"t{index}": index + 1 for index in range(8)})
    gateway, at = CounterTable(), 0
    for _ in range(3):
        answer = board.exchange(Exchange(1, since=at, incarnation="one"), 0.0)
        table, at = answer["table"], answer["at"]  # type: ignore[assignment]
        assert isinstance(table, Table)
        assert len(table.service["one"]) <= 3
        gateway.merge(table)

    assert [gateway.counter(f"t{index}") for index in range(8)] == list(range(1, 9))
    assert not board.exchange(Exchange(1, since=at, incarnation="one"), 0.0)["table"]


def test_gateways_learn_of_each_others_usage_and_forget_who_is_silent() -> None:
    board, _ = board_of("one")
    usage = {"g1": GatewayUsage(3, {"acme": Usage(requests=5, tokens=900, started=5, finished=4, rejected=2)})}
    board.exchange(Exchange(1, usage=usage), 0.0)

    heard = board.exchange(Exchange(1, usage={"g2": GatewayUsage(1)}), 10.0)["usage"]
    assert isinstance(heard, dict)
    assert heard["g1"] == usage["g1"]
    assert board.rejected("acme") == 2

    silent = board.exchange(Exchange(1, usage={"g2": GatewayUsage(2)}), FORGET_SECONDS + 1)["usage"]
    assert isinstance(silent, dict)
    assert silent.keys() == {"g2"}


def test_usage_that_comes_late_or_twice_takes_nothing_back() -> None:
    board, _ = board_of("one")
    for sequence, requests in ((2, 9), (1, 4), (2, 9)):
        usage = {"g1": GatewayUsage(sequence, {"acme": Usage(requests=requests)})}
        heard = board.exchange(Exchange(1, usage=usage), 0.0)["usage"]

    assert isinstance(heard, dict)
    assert heard["g1"].tenants["acme"].requests == 9


NONSENSE = [
    (Exchange(2), "version"),
    (Exchange(1, table=Table(service={"two": {"acme": -1}})), "-1 is not in"),
    (Exchange(1, table=Table(offsets={"acme": LARGEST + 1})), "is not in 0..2^62"),
    (Exchange(1, table=Table(refunds={"two": {"acme": -5}})), "-5 is not in"),
    (Exchange(1, table=Table(service={"one": {"acme": 101}})), "this replica has given 100, not 101"),
    (Exchange(1, table=Table(refunds={"one": {"acme": 1}})), "this replica has given 0, not 1"),
    (Exchange(1, table=Table(service={"two": {f"t{i}": 1 for i in range(65_537)}})), "tenants are more than 65536"),
    (Exchange(1, table=Table(retired=[f"c{i}" for i in range(5_000)])), "columns are more than 4096"),
    (Exchange(1, table=Table(offsets={"x" * 64: 1})), "has more than 63 characters"),
    (Exchange(1, table=Table(service={"": {"acme": 1}})), "must have 1 to 64 characters"),
    (Exchange(1, usage={"g" * 65: GatewayUsage(1)}), "must have 1 to 64 characters"),
    (Exchange(1, usage={"g": GatewayUsage(1, {"acme": Usage(tokens=-1)})}), "usage of tenant 'acme'"),
]


@pytest.mark.parametrize(("exchange", "says"), NONSENSE, ids=[says for _, says in NONSENSE])
def test_nonsense_is_refused_as_a_whole(exchange: Exchange, says: str) -> None:
    board, told = board_of("one", acme=100)
    good = Table(service={"three": {"acme": 7}})
    exchange.table.service.update(good.service)

    with pytest.raises(Nonsense, match=says.replace("^", r"\^").replace("..", r"\.\.")):
        board.exchange(exchange, 0.0)

    assert board.counter("acme") == 100
    assert told == []


def test_what_is_shown_are_the_tenants_that_this_replica_knows() -> None:
    board, _ = board_of("one", acme=100)
    board.exchange(Exchange(1, usage={"g1": GatewayUsage(1, {"initech": Usage(rejected=3)})}), 0.0)

    rows = {row["name"]: row for row in shown(board)}

    assert rows["acme"]["counter"] == 100
    assert (rows["acme"]["waiting"], rows["acme"]["rejected"]) == (1, 0)
    assert (rows["initech"]["service"], rows["initech"]["rejected"]) == (0, 3)
