"""The baselines of the paper that are no orders by counter [VTC 5]: a limit on requests, and deficit round robin."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from lorafleet_runtime.core.fairness.meter import Meter
from lorafleet_runtime.core.fairness.order import Line, Rank, Unlifted
from lorafleet_runtime.core.sequence import Sequence

MINUTE = 60.0


class RequestsPerMinute:
    """RPM(n): a tenant with n accepted requests in the last minute is refused at once; the rest is first come, first
    served. Wastes what the refused could have used: the paper's argument against it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._accepted: dict[str, deque[float]] = {}

    def refuses(self, tenant: str, now: float) -> int | None:
        """Seconds until the tenant may ask again, or None: then this request has been counted. `now` in seconds."""
        times = self._accepted.setdefault(tenant, deque())
        while times and not now - MINUTE < times[0] <= now:  # also what a clock that went back left in the future
            times.popleft()
        if len(times) >= self._most:
            return max(1, -int(-(times[0] + MINUTE - now) // 1))
        times.append(now)
        return None


class Deficits(Unlifted):
    """Tenants' deficits, in micro-units over the weight: who has a positive one may send."""

    def __init__(self, quantum: int, meter: Meter | None) -> None:
        self.meter = meter or Meter()
        self._quantum = quantum  # micro-units
        self._deficits: dict[str, int] = {}

    def rank(self, sequence: Sequence) -> Rank:
        return -self._deficits.get(sequence.tenant, 0), sequence.arrival


class DeficitRoundRobin(Deficits):
    """Tenants in turn, each as long as its deficit is positive; a turn adds a quantum to one that is not.

    Output is charged as it comes, so deficits go far below zero: that debt is kept, also while a tenant is away, and
    costs it turns. Credit is not kept: who has nothing waiting saves up nothing."""

    def __init__(self, quantum: int, meter: Meter | None = None) -> None:
        super().__init__(quantum, meter)
        self._queues: dict[str, Line] = {}
        self._turns: deque[str] = deque()  # tenants with something waiting; the first has the turn
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        for tenant in self._turns:
            yield from self._queues[tenant]

    def add(self, sequence: Sequence) -> None:
        self._queue(sequence.tenant).add(sequence)

    def put_back(self, sequence: Sequence) -> None:
        self._queue(sequence.tenant).put_back(sequence)

    def head(self) -> Sequence | None:
        if not self._turns:
            return None
        if all(self._deficits[tenant] <= 0 for tenant in self._turns):
            # As many rounds at once as it takes until somebody may send.
            rounds = min(-self._deficits[tenant] // self._quantum for tenant in self._turns)
            for tenant in self._turns:
                self._deficits[tenant] += rounds * self._quantum
        while self._deficits[self._turns[0]] <= 0:
            self._deficits[self._turns[0]] += self._quantum
            if self._deficits[self._turns[0]] <= 0:
                self._turns.rotate(-1)
        return self._queues[self._turns[0]].head()

    def upcoming(self, count: int) -> list[Sequence]:
        head = self.head()
        if head is None:
            return []
        heads = [sequence for tenant in self._turns for sequence in self._queues[tenant].upcoming(1)]
        return heads[:count]

    def take(self, sequence: Sequence) -> None:
        tenant = sequence.tenant
        self._queues[tenant].take(sequence)
        self._size -= 1
        if not self._queues[tenant]:
            self._turns.remove(tenant)
            self._deficits[tenant] = min(self._deficits[tenant], 0)

    def share(self, sequence: Sequence) -> Iterable[Sequence]:
        return self._queues[sequence.tenant]

    def arrange(self, sequences: list[Sequence]) -> None:
        self._queues[sequences[0].tenant].arrange(sequences)

    def charge(self, sequence: Sequence, amount: int) -> None:
        self.meter.charge(sequence.tenant, sequence.weight, amount)
        tenant = sequence.tenant
        before = self._deficits.get(tenant, 0)
        self._deficits[tenant] = after = before - round(amount / sequence.weight)
        # Who was not positive before has just got the turn, and not yet the quantum that comes with it.
        if before > 0 >= after and self._turns and self._turns[0] == tenant:
            self._turns.rotate(-1)

    def floor(self) -> int:
        return min((self.meter.counter(tenant) for tenant in self._turns), default=0)

    def _queue(self, tenant: str) -> Line:
        self._size += 1
        queue = self._queues.setdefault(tenant, Line())
        if not queue:
            self._turns.append(tenant)
            self._deficits.setdefault(tenant, 0)
        return queue
