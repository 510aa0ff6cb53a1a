from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_gateway.core import counters as limits
from lorafleet_gateway.core.counters import MOST, Counters, Table

TENANTS = ["acme", "globex", "third"]
COLUMNS = ["r0", "r1", "r2", "r3"]
values = st.integers(0, 1000)
rows = st.dictionaries(st.sampled_from(TENANTS), values)
columns = st.dictionaries(st.sampled_from(COLUMNS), rows)
tables = st.builds(Table, columns, columns, rows, st.lists(st.sampled_from(COLUMNS), max_size=2).map(tuple))


def counters(*tables: Table) -> Counters:
    made = Counters()
    for table in tables:
        made.take(table)
    return made


def cells(of: Counters) -> dict[Any, int]:
    """All that a table says."""
    whole = of.since(0)
    return dict(whole.cells()) | {("retired", name, ""): 1 for name in whole.retired}


def merged(*parts: Counters) -> dict[Any, int]:
    """The whole tables joined: columns that any has retired are folded in each, then the maximum counts."""
    tables = [part.since(0) for part in parts]
    retired = Table(retired=tuple(name for table in tables for name in table.retired))
    folded = [counters(table, retired) for table in tables]
    return cells(counters(*(part.since(0) for part in folded)))


def counter(of: Counters, tenant: str) -> int:
    whole = of.since(0)
    given = sum(row.get(tenant, 0) for row in whole.service.values())
    returned = sum(row.get(tenant, 0) for row in whole.refunds.values())
    return given - returned + whole.offsets.get(tenant, 0)


def restored(found: dict[Any, int]) -> Counters:
    made = Counters()
    for (kind, column, tenant), value in found.items():
        if kind == "retired":
            made.take(Table(retired=(column,)))
        elif kind == "offsets":
            made.take(Table(offsets={tenant: value}))
        else:
            row = {column: {tenant: value}}
            made.take(Table(row) if kind == "service" else Table(refunds=row))
    return made


@given(tables, tables)
def test_merging_does_not_depend_on_who_asks_whom(one: Table, other: Table) -> None:
    assert merged(counters(one), counters(other)) == merged(counters(other), counters(one))


@given(tables)
def test_merging_again_changes_nothing(table: Table) -> None:
    made = counters(table)
    before, version = cells(made), made.version

    made.take(made.since(0))
    assert (cells(made), made.version) == (before, version)
    assert merged(made, made) == before


@given(columns, columns, rows, st.lists(st.sampled_from(COLUMNS)), st.data())
def test_merging_does_not_depend_on_the_order_when_retired_columns_have_their_last_value(
    service: dict[str, dict[str, int]],
    refunds: dict[str, dict[str, int]],
    offsets: dict[str, int],
    dead: list[str],
    data: st.DataObject,
) -> None:
    def view() -> Counters:
        """What somebody knows: living columns and offsets up to some value, dead ones in full, or folded already."""
        some = {c: {t: v if c in dead else data.draw(st.integers(0, v)) for t, v in row.items()}
                for c, row in service.items()}  # fmt: skip
        less = {c: {t: v if c in dead else data.draw(st.integers(0, v)) for t, v in row.items()}
                for c, row in refunds.items()}  # fmt: skip
        known = {tenant: data.draw(st.integers(0, value)) for tenant, value in offsets.items()}
        made = counters(Table(some, less, known))
        for name in data.draw(st.lists(st.sampled_from(dead))) if dead else []:
            made.retire(name)
        return made

    a, b, c = view(), view(), view()
    assert merged(restored(merged(a, b)), c) == merged(a, restored(merged(b, c)))


@given(tables, tables)
def test_no_counter_falls_by_merging(one: Table, other: Table) -> None:
    made = counters(one)
    safe = counters(Table(one.service, {}, one.offsets))  # a refund that is heard of lowers a counter, and should
    before = {tenant: counter(safe, tenant) for tenant in TENANTS}
    safe.take(Table(other.service, {}, other.offsets, other.retired))
    made.take(other)

    assert all(counter(safe, tenant) >= before[tenant] for tenant in TENANTS)
    assert cells(made).keys() >= {("retired", name, "") for name in [*one.retired, *other.retired]}


@given(rows, rows, rows)
def test_folding_a_column_that_all_know_changes_no_counter(
    service: dict[str, int], refunds: dict[str, int], offsets: dict[str, int]
) -> None:
    refunds = {tenant: min(value, service.get(tenant, 0)) for tenant, value in refunds.items()}
    table = Table({"gone": service}, {"gone": refunds}, offsets)
    folded, unfolded = counters(table), counters(table)
    before = {tenant: counter(folded, tenant) for tenant in TENANTS}

    folded.retire("gone")
    unfolded.take(folded.since(0))
    folded.take(table)  # late: from somebody who has not heard

    for made in (folded, unfolded):
        assert {tenant: counter(made, tenant) for tenant in TENANTS} == before
        assert cells(made).keys().isdisjoint({("service", "gone", tenant) for tenant in TENANTS})
    assert cells(folded) == cells(unfolded)


def test_refunds_beyond_the_service_fold_to_nothing_and_sums_stop_at_the_most() -> None:
    made = counters(Table({"r0": {"acme": 5, "globex": MOST}}, {"r0": {"acme": 9}}, {"acme": 1, "globex": MOST}))
    made.retire("r0")

    assert made.since(0) == Table(offsets={"globex": MOST, "acme": 1}, retired=("r0",))


def test_a_column_that_shrinks_stays_at_its_maximum() -> None:
    made = counters(Table({"r0": {"acme": 9}}), Table({"r0": {"acme": 3, "globex": 1}}))

    assert made.since(0).service == {"r0": {"globex": 1, "acme": 9}}


def test_a_retired_column_is_never_taken_again() -> None:
    made = counters(Table({"r0": {"acme": 9}}))
    made.retire("r0")
    version = made.version
    made.take(Table({"r0": {"acme": 900}}, {"r0": {"acme": 1}}))

    assert made.version == version
    assert made.since(0) == Table(offsets={"acme": 9}, retired=("r0",))


def test_what_changed_is_told_once_and_never_to_the_one_who_wrote_it() -> None:
    made = counters(Table({"r0": {"acme": 1}, "r1": {"acme": 2}}))
    version = made.version
    made.take(Table({"r0": {"acme": 1}, "r1": {"acme": 3, "globex": 1}}))

    assert made.since(version) == Table({"r1": {"globex": 1, "acme": 3}})
    assert made.since(version, without="r1") == Table()
    assert made.since(0, without="r1") == Table({"r0": {"acme": 1}})
    assert made.since(made.version) == Table()
    first, until = made.part(0, 1)
    rest, end = made.part(until, 5)
    assert (first, rest, end) == (Table({"r0": {"acme": 1}}), made.since(until), made.version)


def test_a_column_is_folded_when_its_replica_is_gone_and_it_has_been_quiet_for_long() -> None:
    made = counters(Table({"gone": {"acme": 5}, "lives": {"acme": 7}, "busy": {"acme": 1}}))
    assert made.retire_quiet({"lives"}, 0.0, 600) == []
    made.take(Table({"busy": {"acme": 2}}))  # no replica of the document, but somebody writes it
    assert made.retire_quiet({"lives"}, 10.0, 600) == []
    assert made.retire_quiet({"lives", "gone"}, 300.0, 600) == []  # it was back
    assert made.retire_quiet({"lives"}, 599.0, 600) == []

    assert made.retire_quiet({"lives"}, 610.0, 600) == ["busy"]
    assert made.retire_quiet({"lives"}, 1199.0, 600) == ["gone"]
    assert made.since(0) == Table({"lives": {"acme": 7}}, offsets={"acme": 7}, retired=("busy", "gone",))


@pytest.mark.parametrize("name", ["MOST_TENANTS", "MOST_COLUMNS", "MOST_RETIRED"])
def test_one_replicas_nonsense_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(limits, name, 2)
    made = counters(Table({"r0": {"acme": 1}}, retired=("x",)))
    more = Table({"r1": {"b": 1}, "r2": {"c": 1}}, retired=("y", "z",))

    assert made.room_for(Table({"r1": {"b": 1}, "r0": {"acme": 3}}, retired=("x", "y",))) == ""
    assert made.room_for(more).startswith("3 ")


@given(st.integers(0, 2**32), st.booleans())
def test_changes_alone_bring_everybody_to_the_same_as_whole_tables_whatever_is_lost(seed: int, folds: bool) -> None:
    """Replicas that write, two gateways that carry; messages get lost, repeated and reordered until the end."""

    def run(whole: bool) -> list[dict[Any, int]]:
        draw, noise = random.Random(seed), random.Random(seed + 1)
        replicas = {name: Counters() for name in COLUMNS[:3]}
        gateways = [Counters(), Counters()]
        sent: dict[tuple[int, str, str], int] = {}
        late: list[tuple[Counters, Table]] = []

        def tell(i: int, name: str, way: str, loss: Callable[[], bool]) -> None:
            teller, reader = (gateways[i], replicas[name])[:: 1 if way == "down" else -1]
            version = teller.version
            table = teller.since(0 if whole else sent.get((i, name, way), 0), without=name if way == "down" else "")
            if loss():
                if loss():
                    late.append((reader, table))
                return
            reader.take(table)
            sent[i, name, way] = version

        for _ in range(30):
            name = draw.choice(list(replicas))
            row = {draw.choice(TENANTS): draw.randrange(1000)}
            if name not in cells_retired(replicas[name]):
                replicas[name].take(Table({name: row}) if draw.random() < 0.7 else Table(offsets=row))
            for i in (0, 1):
                for way in ("up", "down"):
                    tell(i, noise.choice(list(replicas)), way, lambda: noise.random() < 0.4)
            if late and noise.random() < 0.3:
                reader, table = late.pop(noise.randrange(len(late)))
                reader.take(table)
        rounds = [(i, name, way) for _ in range(3) for i in (0, 1) for name in replicas for way in ("up", "down")]
        for i, name, way in rounds:
            tell(i, name, way, lambda: False)
        if folds:
            gateways[0].retire("r0")
            gateways[1].retire("r1")
            for i, name, way in rounds:
                tell(i, name, way, lambda: False)
        return [cells(part) for part in (*gateways, *replicas.values())]

    changes, wholes = run(whole=False), run(whole=True)
    assert all(found == changes[0] for found in changes)
    assert changes == wholes


def cells_retired(of: Counters) -> set[str]:
    return set(of.since(0).retired)
