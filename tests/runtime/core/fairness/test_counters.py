"""Counters as a join-semilattice: what exchanges may do, and what they may not change [vtc 17]."""

from __future__ import annotations

import random

from lorafleet_runtime.core.fairness.counters import LARGEST, CounterTable, Table
from tests.runtime.core.fairness.kit import for_seeds

TENANTS = "abc"
REPLICAS = ("r0", "r1", "r2")


def counters(table: CounterTable) -> dict[str, int]:
    return {tenant: table.counter(tenant) for tenant in TENANTS}


def act(rng: random.Random, table: CounterTable) -> None:
    """Something that a replica does to a counter of its own accord."""
    tenant = rng.choice(TENANTS)
    match rng.randrange(4):
        case 0 | 1:
            table.spend(tenant, rng.randint(0, 100))
        case 2:
            given_back = table.since(0).refunds.get(table.own, {}).get(tenant, 0)
            table.refund(tenant, rng.randint(0, table.own_service(tenant) - given_back))
        case _:
            table.lift(tenant, rng.randint(0, 300))


def lived(rng: random.Random) -> list[CounterTable]:
    """Replicas that have charged, lifted and met now and then."""
    tables = [CounterTable(name) for name in REPLICAS]
    for _ in range(rng.randint(1, 25)):
        act(rng, rng.choice(tables))
        if rng.random() < 0.2:
            giver, taker = rng.sample(tables, 2)
            taker.merge(giver.since(0))
    return tables


def joined(*tables: Table) -> Table:
    """What somebody knows who has heard these, in this order."""
    reader = CounterTable()
    for table in tables:
        reader.merge(table)
    return reader.since(0)


def same(one: Table, other: Table) -> bool:
    def facts(table: Table) -> tuple[object, ...]:
        return table.service, table.refunds, {t: o for t, o in table.offsets.items() if o}, set(table.retired)

    return facts(one) == facts(other)


@for_seeds()
def test_merging_is_commutative_associative_and_idempotent(seed: int) -> None:
    a, b, c = (table.since(0) for table in lived(random.Random(seed)))

    assert same(joined(a, b), joined(b, a))
    assert same(joined(joined(a, b), c), joined(a, joined(b, c)))
    assert same(joined(a, a), joined(a))
    assert same(joined(a, b, a, c, b), joined(c, b, a))


@for_seeds()
def test_exchanges_may_be_lost_repeated_and_reordered(seed: int) -> None:
    """Changes by version: what is lost is in the next, since the sender starts again from what was heard."""
    rng = random.Random(seed)
    tables = lived(rng)
    heard: dict[tuple[int, int], int] = {}
    on_the_way: list[tuple[int, int, int, Table]] = []
    for _ in range(40):
        act(rng, rng.choice(tables))
        giver, taker = rng.sample(range(3), 2)
        said = tables[giver].since(heard.get((giver, taker), 0))
        on_the_way += [(giver, taker, tables[giver].version, said)] * rng.choice((0, 1, 1, 2))
        rng.shuffle(on_the_way)
        while on_the_way and rng.random() < 0.6:
            sender, receiver, version, table = on_the_way.pop()
            tables[receiver].merge(table)
            heard[sender, receiver] = max(version, heard.get((sender, receiver), 0))
    for giver in range(3):
        for taker in range(3):
            tables[taker].merge(tables[giver].since(heard.get((giver, taker), 0)))
    for other in tables:
        tables[0].merge(other.since(0))

    everything = CounterTable()
    for other in tables:
        everything.merge(other.since(0))
    assert counters(tables[0]) == counters(everything)


@for_seeds()
def test_what_is_charged_is_counted_once_however_often_it_is_told(seed: int) -> None:
    rng = random.Random(seed)
    tables = [CounterTable(name) for name in REPLICAS]
    spent = dict.fromkeys(TENANTS, 0)
    for _ in range(30):
        table, tenant, amount = rng.choice(tables), rng.choice(TENANTS), rng.randint(0, 50)
        table.spend(tenant, amount)
        spent[tenant] += amount
        rng.choice(tables).merge(rng.choice(tables).since(rng.randint(0, 5)))
    reader = CounterTable()
    for table in tables * 2:
        reader.merge(table.since(0))

    assert counters(reader) == spent


@for_seeds()
def test_no_charge_lift_or_merge_of_these_lowers_a_counter_but_a_refund(seed: int) -> None:
    rng = random.Random(seed)
    tables = [CounterTable(name) for name in REPLICAS]
    for _ in range(30):
        table = rng.choice(tables)
        before = counters(table)
        match rng.randrange(4):
            case 0:
                table.spend(rng.choice(TENANTS), rng.randint(0, 50))
            case 1:
                table.lift(rng.choice(TENANTS), rng.randint(0, 300))
            case 2:
                table.begin_column()
            case _:
                changed = table.merge(rng.choice(tables).since(0))
                assert changed >= {tenant for tenant in TENANTS if table.counter(tenant) != before[tenant]}
        assert all(table.counter(tenant) >= before[tenant] for tenant in TENANTS)


@for_seeds()
def test_a_replica_that_starts_again_neither_forgives_nor_invents_a_debt(seed: int) -> None:
    """It comes back with a new column, learns the rest from others, and its old column may be folded."""
    rng = random.Random(seed)
    tables = lived(rng)
    for giver in tables:
        for taker in tables:
            taker.merge(giver.since(0))
    before = counters(tables[1])
    again = CounterTable("r0'")
    assert counters(again) == dict.fromkeys(TENANTS, 0)

    again.merge(tables[1].since(0))
    assert counters(again) == before
    if rng.random() < 0.5:
        tables[1].retire("r0")
    again.spend("a", 7)
    for giver, taker in ((tables[1], again), (again, tables[1]), (tables[2], again), (again, tables[2])):
        taker.merge(giver.since(0))

    expected = before | {"a": before["a"] + 7}
    assert counters(again) == counters(tables[1]) == counters(tables[2]) == expected


@for_seeds()
def test_folding_a_column_whose_last_value_all_know_changes_no_counter(seed: int) -> None:
    """Whoever folds it, whoever has not yet, and whatever they tell each other afterwards."""
    rng = random.Random(seed)
    tables = lived(rng)
    for giver in tables * 2:
        for taker in tables:
            taker.merge(giver.since(0))
    before = counters(tables[0])
    tables[rng.randrange(1, 3)].retire("r0")
    for _ in range(6):
        rng.choice(tables[1:]).merge(rng.choice(tables).since(0))

    assert all(counters(table) == before for table in tables)


@for_seeds()
def test_two_that_have_folded_different_columns_agree_whoever_tells_first(seed: int) -> None:
    """Also when one folded a column of which the other knows more."""
    rng = random.Random(seed)
    tables = lived(rng)
    for table in tables[:2]:
        if rng.random() < 0.7:
            table.retire("r2")
    one, other = tables[0].since(0), tables[1].since(0)

    assert same(joined(one, other), joined(other, one))


def test_who_knows_more_of_a_folded_column_is_heard() -> None:
    gone, early, late = CounterTable("gone"), CounterTable("early"), CounterTable("late")
    gone.spend("a", 90)
    early.merge(gone.since(0))
    gone.spend("a", 10)
    late.merge(gone.since(0))
    early.retire("gone")

    early.merge(late.since(0))

    assert early.counter("a") == 100


def test_what_a_folded_column_refunded_is_not_charged_by_who_hears_of_it_later() -> None:
    """A change of service alone comes with the refunds that did not change."""
    gone, folded = CounterTable("gone"), CounterTable("folded")
    gone.spend("a", 90)
    gone.refund("a", 20)
    folded.merge(gone.since(0))
    folded.retire("gone")
    version = gone.version
    gone.spend("a", 10)

    folded.merge(gone.since(version))

    assert folded.counter("a") == gone.counter("a") == 80


def test_whose_own_column_is_retired_by_mistake_goes_on_in_a_new_one() -> None:
    table, other = CounterTable("r0"), CounterTable("r1")
    table.spend("a", 10)
    other.merge(table.since(0))
    other.retire("r0")

    table.merge(other.since(0))
    table.spend("a", 5)
    other.merge(table.since(0))

    assert table.own != "r0"
    assert table.counter("a") == other.counter("a") == 15


def test_a_column_that_would_outgrow_the_wire_goes_on_in_a_new_one() -> None:
    table, other = CounterTable("r0"), CounterTable("r1")
    table.spend("a", LARGEST - 5)
    table.spend("b", 7)
    table.spend("a", 5)
    assert table.own == "r0"

    table.spend("a", 3)
    other.merge(table.since(0))

    assert other.counter("a") == table.counter("a") == LARGEST + 3
    assert other.counter("b") == 7
    assert all(value <= LARGEST for column in table.since(0).service.values() for value in column.values())
    assert len(table.columns()) == 2


def test_what_changed_since_is_told_and_nothing_else() -> None:
    table = CounterTable("r0")
    table.spend("a", 1)
    table.lift("b", 9)
    version = table.version
    assert not table.since(version)

    table.spend("a", 1)

    assert table.since(version) == Table(service={"r0": {"a": 2}})
