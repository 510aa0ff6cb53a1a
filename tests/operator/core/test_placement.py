"""Which adapter on which replica: a table of standings, and properties over any fleet."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_operator.core.objects import Adapter, Replica, Resident
from lorafleet_operator.core.placement import Placement, Places, Standing, place, residency, standing
from lorafleet_sim.fleets import adapter, base_model, found, replica, resident

BASE = base_model(replicas=3)
PIRATE = adapter()
NEW = found(PIRATE).revision
OLD = "sha256:" + "0" * 64


def placed(one: Adapter, *replicas: Replica, **counts: int) -> Placement:
    there = residency(replicas).get(one.ref, {})
    places = Places(replicas, {f"smollm2-{k[1:]}": v for k, v in counts.items()})
    return place(one, found(one).revision, places, there)


def fleet(*residents: tuple[Resident, ...], **more: Any) -> list[Replica]:
    return [replica(BASE, index, *held, **more) for index, held in enumerate(residents)]


@pytest.mark.parametrize(("residents", "expected"), [
    ((), "Absent"),
    ((resident(PIRATE),), "Ready"),
    ((resident(PIRATE, "Loading"),), "Loading"),
    ((resident(PIRATE, "Pending"),), "Loading"),
    ((resident(PIRATE, "Draining"),), "Absent"),
    ((resident(PIRATE, "Failed", "NoRoom"),), "Failed"),
    ((resident(PIRATE, "Failed", "RankTooHigh"),), "Refused"),
    ((resident(PIRATE, revision=OLD),), "Old"),
    ((resident(PIRATE, "Failed", "NoRoom", revision=OLD),), "Absent"),
    ((resident(PIRATE, revision=OLD), resident(PIRATE, "Loading")), "Loading"),
    ((resident(PIRATE, revision=OLD), resident(PIRATE, "Failed", "NoRoom")), "Failed"),
])  # fmt: skip
def test_how_far_a_replica_is_with_a_revision(residents: tuple[Resident, ...], expected: Standing) -> None:
    assert standing(residents, NEW) == expected


def test_a_copy_stays_where_it_is_though_another_place_is_emptier() -> None:
    replicas = fleet((resident(PIRATE),), ())

    assert placed(PIRATE, *replicas, _0=9, _1=0) == Placement(("smollm2-0",))


def test_new_copies_go_to_the_fewest_adapters_then_to_the_most_free_pages_then_in_order() -> None:
    two = adapter(copies_min=2)
    replicas = [replica(BASE, 0, pages_free=10), replica(BASE, 1, pages_free=90), replica(BASE, 2, pages_free=90)]

    assert placed(two, *replicas, _0=0, _1=1, _2=1).targets == ("smollm2-0", "smollm2-1")
    assert placed(PIRATE, *replicas).targets == ("smollm2-1",)


def test_more_copies_than_replicas_are_as_many_as_there_are_replicas() -> None:
    assert placed(adapter(copies_min=5), *fleet((), ())).targets == ("smollm2-0", "smollm2-1")
    assert placed(PIRATE).targets == ()


def test_copies_between_minimum_and_maximum_are_left_alone() -> None:
    some = adapter(copies_max=2)

    assert placed(some, *fleet((resident(some),), (resident(some),))).surplus == ()


def test_the_last_copies_beyond_the_maximum_are_given_up_once_nothing_is_on_its_way() -> None:
    ready, loading = (resident(PIRATE),), (resident(PIRATE, "Loading"),)

    assert placed(PIRATE, *fleet(ready, ready, ready)).surplus == ("smollm2-1", "smollm2-2")
    assert placed(PIRATE, *fleet(loading, ready, ready)).surplus == ()


def test_what_is_decided_counts_for_what_is_decided_next() -> None:
    replicas = fleet((), (), ())
    places = Places(replicas, {"smollm2-0": 1})
    chosen = []
    for _ in range(5):
        (name,) = place(PIRATE, NEW, places, {}).targets
        places.add(name)
        chosen.append(name)

    assert chosen == ["smollm2-1", "smollm2-2", "smollm2-0", "smollm2-1", "smollm2-2"]


def test_a_place_where_loading_failed_is_the_last_resort() -> None:
    failed = (resident(PIRATE, "Failed", "NoRoom"),)

    assert placed(PIRATE, *fleet(failed, ()), _1=9).targets == ("smollm2-1",)
    assert placed(PIRATE, *fleet(failed)).targets == ("smollm2-0",)


def test_a_refused_revision_is_placed_nowhere_else() -> None:
    refused = resident(PIRATE, "Failed", "InvalidAdapter")

    assert placed(PIRATE, *fleet((refused,), ())) == Placement((), (), refused)


ANY_RESIDENT = st.sampled_from([
    resident(PIRATE), resident(PIRATE, "Loading"), resident(PIRATE, "Draining"), resident(PIRATE, revision=OLD),
    resident(PIRATE, "Failed", "NoRoom"), resident(PIRATE, "Failed", "RankTooHigh"),
])  # fmt: skip
ANY_FLEET = st.lists(st.lists(ANY_RESIDENT, max_size=2, unique=True), max_size=5)


@given(ANY_FLEET, st.integers(1, 4), st.integers(0, 2), st.permutations(range(5)))
def test_placement_keeps_its_promises(held: list[list[Resident]], least: int, more: int, order: list[int]) -> None:
    one = adapter(copies_min=least, copies_max=least + more)
    replicas = fleet(*(tuple(residents) for residents in held))
    decided = placed(one, *replicas)
    ready = {r.name for r in replicas if any(x.state == "Ready" for x in r.residents)}
    current = {r.name for r in replicas if any(x.state == "Ready" and x.revision == NEW for x in r.residents)}

    assert len(set(decided.targets)) == len(decided.targets)
    assert not set(decided.targets) & set(decided.surplus)
    assert len(current - set(decided.surplus)) >= min(len(current), one.copies_max)
    assert ready - set(decided.surplus) or not ready
    if decided.refused is None:
        assert len(decided.targets) >= min(one.copies_min, len(replicas))
    shuffled = placed(one, *(replicas[i] for i in order if i < len(replicas)))
    assert decided.refused is not None or {*shuffled.targets} == {*decided.targets} or decided.surplus
