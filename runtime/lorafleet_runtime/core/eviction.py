"""Which idle pages are given up first: one order of value for idle adapters and idle prefixes alike.

GreedyDual-Size-Frequency [Cao and Irani 1997; Cherkasova 1998]: an item is worth

    value = clock + uses · seconds to bring it back / pages

and the clock rises to the value of what is given up, so that what is not used any more falls behind: recency without
timestamps. O(log items) an operation; entries of items that were used again stay in the heap and are skipped."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from lorafleet_runtime.core.pages import OutOfPages, PagePool

Purpose = Literal["prompt", "decode", "adapter"]
"""What pages are wanted for: a sequence's admission, a running one's growth, or an adapter's weights."""
PURPOSES: tuple[Purpose, ...] = ("prompt", "decode", "adapter")

TELLING_TOKENS, SMOOTHING = 64, 0.1


@dataclass(slots=True)
class Costs:
    """What it takes to bring things back on this replica, in seconds; the engine measures them as it runs."""

    token: float = 1e-3
    """To compute one prompt token."""
    page: float = 1e-4
    """To copy one page of an adapter from host memory."""
    read: float = 1e-3
    """To read one page of an adapter from disk."""
    step: float = math.inf
    """A step's usual time; not known before the first."""

    def saw_step(self, seconds: float, tokens: int) -> None:
        """A step took so long. Of a prompt token small ones say little: most of their time is the same without it."""
        self.step = seconds if math.isinf(self.step) else self.step + SMOOTHING * (seconds - self.step)
        if tokens >= TELLING_TOKENS:
            self.token += SMOOTHING * (seconds / tokens - self.token)

    def saw_read(self, seconds: float, pages: int) -> None:
        """An adapter of so many pages was read from disk."""
        self.read += SMOOTHING * (seconds / pages - self.read)


class Idle(Protocol):
    """Something that holds pages and may be given up. `ticket` belongs to the order: 0 while it is not in it."""

    ticket: int


class EvictionOrder:
    """Idle items of one pool. `pages` counts all that could be given up, also what is not in the order yet because
    something else depends on it: a prefix on its continuation's absence, an adapter on its prefixes' absence."""

    def __init__(self, pool: PagePool) -> None:
        self.pages = 0
        self.clock = 0.0
        self._pool = pool
        self._heap: list[tuple[float, int, Any, Callable[[Any, Purpose], None]]] = []
        self._tickets = 0
        self._live = 0

    def put(self, item: Idle, worth: float, evict: Callable[[Any, Purpose], None]) -> None:
        """`worth` in seconds a page: uses · seconds / pages. `evict(item, purpose)` gives its pages back."""
        assert item.ticket == 0
        self._tickets += 1
        self._live += 1
        item.ticket = self._tickets
        if len(self._heap) > 2 * self._live + 64:
            self._heap = [entry for entry in self._heap if entry[2].ticket == entry[1]]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (self.clock + worth, item.ticket, item, evict))

    def take(self, item: Idle) -> None:
        """It is in use again, or gone. Nothing happens to an item that is not in the order."""
        if item.ticket:
            item.ticket = 0
            self._live -= 1

    def make_room(self, pages: int, purpose: Purpose) -> None:
        """Give up the least valuable items until `pages` are free. Raises OutOfPages, giving up nothing, when all of
        them would not do."""
        if self._pool.free >= pages:
            return
        if self._pool.free + self.pages < pages:
            raise OutOfPages(pages, self._pool.free + self.pages)
        while self._pool.free < pages:
            value, ticket, item, evict = heapq.heappop(self._heap)
            if item.ticket != ticket:
                continue
            self.take(item)
            self.clock = max(self.clock, value)
            evict(item, purpose)
