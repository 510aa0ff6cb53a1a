"""Adapters take pages when needed, keep them while idle, and leave least recently used first."""

from __future__ import annotations

import pytest

from lorafleet_runtime.core.pages import OutOfPages, PagePool
from lorafleet_runtime.core.residency import Adapter, Residency


def register(residency: Residency, name: str, pages: int = 2, *, revision: str = "r1", pinned: bool = False) -> Adapter:
    return residency.register(name, revision, 8, pages, 100, ("q_proj",), pinned)[0]


def test_an_adapter_is_uploaded_once_and_stays_while_idle() -> None:
    residency = Residency(PagePool(4))
    adapter = register(residency, "a")

    assert residency.acquire(adapter)
    residency.release(adapter)
    assert not residency.acquire(adapter)
    assert residency.loads == 1


def test_the_least_recently_used_idle_adapter_leaves_first() -> None:
    residency = Residency(PagePool(4))
    first, second, third = (register(residency, name) for name in "abc")
    for adapter in (first, second, first):
        residency.acquire(adapter)
        residency.release(adapter)

    residency.acquire(third)

    assert (first.resident, second.resident, third.resident) == (True, False, True)
    assert residency.evicted.total() == 1


def test_an_adapter_in_use_is_never_evicted() -> None:
    pool = PagePool(4)
    residency = Residency(pool)
    used, idle, wanted = register(residency, "a"), register(residency, "b"), register(residency, "c", pages=4)
    residency.acquire(used)
    residency.acquire(idle)
    residency.release(idle)

    with pytest.raises(OutOfPages):
        residency.acquire(wanted)

    assert idle.resident, "an eviction that could not help must not happen"
    assert wanted.users == 0


def test_a_pinned_adapter_stays_when_idle() -> None:
    residency = Residency(PagePool(4))
    pinned, other = register(residency, "a", pinned=True), register(residency, "b", pages=4)
    residency.acquire(pinned)
    residency.release(pinned)

    with pytest.raises(OutOfPages):
        residency.acquire(other)


def test_a_new_revision_takes_the_name_and_the_old_one_drains_with_its_last_request() -> None:
    pool = PagePool(4)
    residency = Residency(pool)
    old = register(residency, "a")
    residency.acquire(old)

    new = register(residency, "a", revision="r2")

    assert residency.get("a") is new
    assert old.draining
    assert residency.collect() == []
    residency.release(old)
    assert residency.collect() == [old]
    assert pool.free == 4


def test_a_draining_revision_with_requests_still_queued_is_kept() -> None:
    residency = Residency(PagePool(4))
    adapter = register(residency, "a")
    adapter.waiting = 1

    assert residency.unregister("a") == []
    adapter.waiting = 0
    assert residency.collect() == [adapter]


def test_unregistering_an_unknown_name_is_nothing() -> None:
    assert Residency(PagePool(1)).unregister("nobody") == []


def test_a_pin_can_be_taken_back_and_set_while_idle() -> None:
    residency = Residency(PagePool(4))
    adapter, other = register(residency, "a", pinned=True), register(residency, "b", pages=4)
    residency.acquire(adapter)
    residency.release(adapter)

    residency.pin(adapter, False)
    residency.acquire(other)
    assert not adapter.resident

    residency.release(other)
    residency.pin(other, True)
    with pytest.raises(OutOfPages):
        residency.acquire(adapter)
