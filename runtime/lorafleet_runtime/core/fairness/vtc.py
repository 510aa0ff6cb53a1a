"""The Virtual Token Counter [VTC, algorithm 2; weighted: 4.3]: who has received the least goes next.

    on arrival of r of tenant u:
        if u has nothing waiting:                           # u was away: lift it, so that idling saves up nothing
            if nobody has:   c[u] = max(c[u], c[last_left])
            else:            c[u] = max(c[u], min{c[i] : i has something waiting})
    while the batch has room:
        k = argmin{c[i] : i has something waiting}          # ties: who was charged longest ago, then the earlier head
        if head(k) does not fit: stop                       # skipping it would void the bound
        take it, c[k] += its prompt's cost / weight         # here and now: charging a filled batch lets one take all
        if k has nothing more waiting: last_left = k
    each step:  c[i] += cost of the tokens made for i / weight

With U the greatest cost of one tenant's requests that run at once (over its weight), waiting tenants' counters are
never further apart than U, and two tenants that both wait throughout receive service that differs by at most 2U.
The code published with the paper lacks the rule for the empty queue: a newcomer then gets nearly everything.

The minimum comes from a heap whose keys are checked when they are seen: counters grow, so a stale key is too small and
is put right at the top. Every operation is O(log tenants) amortised."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator

from lorafleet_runtime.core.fairness.meter import Meter
from lorafleet_runtime.core.fairness.order import Key, Line, Order, Rank, tenant_of
from lorafleet_runtime.core.sequence import Sequence

_Entry = tuple[int, int, int, str, int]  # counter, last charge, arrival of the head; key, version


def _weight_of(sequence: Sequence) -> float:
    return sequence.weight


class Vtc:
    """One order a key inside (a line, or another Vtc: then it is hierarchical), the least served key first.

    `lifts=False` is Least Counter First, the baseline that lets a newcomer starve everybody [VTC 5]."""

    evens_out = True

    def __init__(
        self,
        meter: Meter | None = None,
        *,
        key: Key = tenant_of,
        weight: Callable[[Sequence], float] = _weight_of,
        inner: Callable[[], Line | Order] = Line,
        lifts: bool = True,
    ) -> None:
        self.meter = meter or Meter()
        self.lifted = 0
        self._key = key
        self._weight = weight
        self._inner = inner
        self._lifts = lifts
        self._orders: dict[str, Line | Order] = {}
        self._waiting: dict[str, int] = {}  # keys with something waiting -> the version of their entry in the heap
        self._heap: list[_Entry] = []
        self._version = 0
        self._charges = 0
        self._charged: dict[str, int] = {}  # when a key was last charged, in charges
        self._size = 0
        self._last_left: str | None = None

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        for key in self._waiting:
            yield from self._orders[key]

    @property
    def backlogged(self) -> list[str]:
        """The keys with something waiting."""
        return list(self._waiting)

    def add(self, sequence: Sequence) -> None:
        key = self._key(sequence)
        self._lift(key)
        self._order(key).add(sequence)
        self._size += 1
        if key not in self._waiting:
            self._push(key)

    def put_back(self, sequence: Sequence) -> None:
        key = self._key(sequence)
        self._lift(key)
        self._order(key).put_back(sequence)
        self._size += 1
        self._push(key)

    def head(self) -> Sequence | None:
        key = self._least()
        return None if key is None else self._orders[key].head()

    def upcoming(self, count: int) -> list[Sequence]:
        """The heads of the next keys, or more of the only key's."""
        if len(self._waiting) == 1:
            return self._orders[next(iter(self._waiting))].upcoming(count)
        taken: list[_Entry] = []
        found: list[Sequence] = []
        while len(found) < count and (key := self._least()) is not None:
            taken.append(heapq.heappop(self._heap))
            found += self._orders[key].upcoming(1)
        for entry in taken:
            heapq.heappush(self._heap, entry)
        return found

    def take(self, sequence: Sequence) -> None:
        """Also of one who cancels: whoever leaves the queue empty is the one that newcomers are lifted to."""
        key = self._key(sequence)
        self._orders[key].take(sequence)
        self._size -= 1
        if not len(self._orders[key]):
            del self._waiting[key]
            self._last_left = key

    def share(self, sequence: Sequence) -> Iterable[Sequence]:
        return self._orders[self._key(sequence)].share(sequence)

    def arrange(self, sequences: list[Sequence]) -> None:
        key = self._key(sequences[0])
        self._orders[key].arrange(sequences)
        self._push(key)  # another head stands elsewhere among equal counters

    def charge(self, sequence: Sequence, amount: int) -> None:
        key = self._key(sequence)
        self._charges += 1
        self._charged[key] = self._charges
        self.meter.charge(key, self._weight(sequence), amount)
        if self._inner is not Line:
            self._order(key).charge(sequence, amount)
        if amount < 0:
            self.recount((key,))

    def recount(self, keys: Iterable[str]) -> None:
        for key in keys:
            if key in self._waiting:
                self._push(key)

    def floor(self) -> int:
        key = self._least()
        if key is None:
            key = self._last_left
        return 0 if key is None else self.meter.counter(key)

    def rank(self, sequence: Sequence) -> Rank:
        """The most served tenant's newest request goes first."""
        return self.meter.counter(self._key(sequence)), sequence.arrival

    def outranks(self, waiting: Sequence, running: Sequence) -> bool:
        return self._served(self._key(waiting)) < self._served(self._key(running))

    def _lift(self, key: str) -> None:
        """Also for one whose only request was preempted: while that ran nothing of it waited, and what others got in
        the meantime is no credit for what it sends next. As the earlier arrival it goes first at equal counters."""
        if key not in self._waiting and self._lifts and self.meter.table.lift(key, self.floor()):
            self.lifted += 1

    def _order(self, key: str) -> Line | Order:
        order = self._orders.get(key)
        if order is None:
            order = self._orders[key] = self._inner()
        return order

    def _least(self) -> str | None:
        heap = self._heap
        while heap:
            counter, charged, arrival, key, version = heap[0]
            if self._waiting.get(key) != version:
                heapq.heappop(heap)
                continue
            now = self._standing(key)
            if now != (counter, charged, arrival):
                heapq.heapreplace(heap, (*now, key, version))
                continue
            return key
        return None

    def _push(self, key: str) -> None:
        self._version += 1
        self._waiting[key] = self._version
        if len(self._heap) > 2 * len(self._waiting) + 64:  # entries that were superseded pile up
            self._heap = [(*self._standing(k), k, version) for k, version in self._waiting.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (*self._standing(key), key, self._version))

    def _standing(self, key: str) -> tuple[int, int, int]:
        head = self._orders[key].head()
        assert head is not None, key
        return *self._served(key), head.arrival

    def _served(self, key: str) -> tuple[int, int]:
        return self.meter.counter(key), self._charged.get(key, 0)
