"""Deficit Longest Prefix Match [DLPM, arXiv 2501.14312]: locality inside fairness.

Waiting sequences whose prompts begin with the most cached tokens go first, but only those of tenants with a positive
deficit. When nobody has one, everybody who waits and has none gets a quantum more, as often as it takes. A large
quantum keeps neighbours in the cache together; the price is that waiting tenants may drift apart by up to 2(U + Q)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from lorafleet_runtime.core.fairness.baselines import Deficits
from lorafleet_runtime.core.fairness.meter import Meter
from lorafleet_runtime.core.sequence import Sequence


def _found(sequence: Sequence) -> int:
    return sequence.cached


class DeficitLongestPrefix(Deficits):
    """`match` says how many of a waiting prompt's tokens are cached now. Finding the head is linear in what waits: what
    is cached changes with every step."""

    def __init__(
        self, quantum: int, meter: Meter | None = None, match: Callable[[Sequence], int] = _found
    ) -> None:
        super().__init__(quantum, meter)
        self._match = match
        self._queues: dict[str, dict[int, Sequence]] = {}  # tenants with something waiting, by arrival
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        return chain.from_iterable(queue.values() for queue in self._queues.values())

    def add(self, sequence: Sequence) -> None:
        self._queues.setdefault(sequence.tenant, {})[sequence.arrival] = sequence
        self._deficits.setdefault(sequence.tenant, self._quantum)
        self._size += 1

    def put_back(self, sequence: Sequence) -> None:
        self.add(sequence)

    def head(self) -> Sequence | None:
        return next(iter(self.upcoming(1)), None)

    def upcoming(self, count: int) -> list[Sequence]:
        if not self._queues:
            return []
        if all(self._deficits[tenant] <= 0 for tenant in self._queues):
            rounds = 1 + min(-self._deficits[tenant] // self._quantum for tenant in self._queues)
            for tenant in self._queues:
                self._deficits[tenant] += rounds * self._quantum
        able = (s for tenant, queue in self._queues.items() if self._deficits[tenant] > 0 for s in queue.values())
        if count == 1:
            return [min(able, key=self._standing)]
        return sorted(able, key=self._standing)[:count]

    def take(self, sequence: Sequence) -> None:
        queue = self._queues[sequence.tenant]
        del queue[sequence.arrival]
        self._size -= 1
        if not queue:
            del self._queues[sequence.tenant]

    def share(self, sequence: Sequence) -> Iterable[Sequence]:
        return self._queues[sequence.tenant].values()

    def arrange(self, sequences: list[Sequence]) -> None:
        pass  # locality decides

    def charge(self, sequence: Sequence, amount: int) -> None:
        self.meter.charge(sequence.tenant, sequence.weight, amount)
        before = self._deficits.get(sequence.tenant, self._quantum)
        self._deficits[sequence.tenant] = before - round(amount / sequence.weight)

    def floor(self) -> int:
        return min((self.meter.counter(tenant) for tenant in self._queues), default=0)

    def _standing(self, sequence: Sequence) -> tuple[int, int]:
        return -self._match(sequence), sequence.arrival
