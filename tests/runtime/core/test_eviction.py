"""One order of value for all that is idle, and room made in it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from lorafleet_runtime.core.eviction import EvictionOrder, Purpose
from lorafleet_runtime.core.pages import OutOfPages, PagePool


@dataclass(eq=False)
class Item:
    name: str
    pages: list[int] = field(default_factory=list)
    ticket: int = 0


class Shelf:
    """Items of given sizes in a pool, and who has been given up for what."""

    def __init__(self, pages: int) -> None:
        self.pool = PagePool(pages)
        self.order = EvictionOrder(self.pool)
        self.gone: list[tuple[str, Purpose]] = []

    def put(self, name: str, pages: int, worth: float) -> Item:
        item = Item(name, self.pool.allocate(pages))
        self.rest(item, worth)
        return item

    def rest(self, item: Item, worth: float) -> None:
        self.order.pages += len(item.pages)
        self.order.put(item, worth, self._evict)

    def use(self, item: Item) -> None:
        self.order.take(item)
        self.order.pages -= len(item.pages)

    def _evict(self, item: Item, purpose: Purpose) -> None:
        self.order.pages -= len(item.pages)
        self.pool.release(item.pages)
        self.gone.append((item.name, purpose))


def test_what_is_worth_least_a_page_leaves_first_and_no_more_than_needed() -> None:
    shelf = Shelf(6)
    shelf.put("dear", 2, worth=3.0)
    shelf.put("cheap", 2, worth=1.0)
    shelf.put("middling", 2, worth=2.0)

    shelf.order.make_room(3, "decode")

    assert shelf.gone == [("cheap", "decode"), ("middling", "decode")]
    assert (shelf.pool.free, shelf.order.pages) == (4, 2)


def test_equal_worth_leaves_in_order_of_last_use() -> None:
    shelf = Shelf(4)
    first = shelf.put("first", 2, worth=1.0)
    shelf.put("second", 2, worth=1.0)
    shelf.use(first)
    shelf.rest(first, worth=1.0)

    shelf.order.make_room(1, "prompt")

    assert shelf.gone == [("second", "prompt")]


def test_what_is_not_used_any_more_falls_behind_however_dear_it_was() -> None:
    shelf = Shelf(2)
    shelf.put("once dear", 1, worth=5.0)
    for turn in range(6):
        shelf.put(f"passing {turn}", 1, worth=1.0)
        shelf.order.make_room(1, "adapter")

    assert ("once dear", "adapter") in shelf.gone
    assert len(shelf.gone) == 6


def test_nothing_is_given_up_where_all_of_it_would_not_do() -> None:
    shelf = Shelf(4)
    shelf.put("idle", 2, worth=1.0)
    busy = shelf.put("busy", 2, worth=1.0)
    shelf.use(busy)

    with pytest.raises(OutOfPages):
        shelf.order.make_room(3, "prompt")

    assert shelf.gone == []


def test_entries_of_items_that_are_used_again_do_not_pile_up() -> None:
    shelf = Shelf(1)
    item = shelf.put("hot", 1, worth=1.0)
    for _ in range(1000):
        shelf.use(item)
        shelf.rest(item, worth=1.0)

    assert len(shelf.order._heap) < 100
