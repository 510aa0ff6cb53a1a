"""What a scheduler needs of an admission order, whatever the policy; and the plainest one, first come first served."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol
from zlib import crc32

from lorafleet_runtime.core.fairness.meter import Meter
from lorafleet_runtime.core.sequence import Sequence

Key = Callable[[Sequence], str]
Rank = tuple[int, int]
USERS = 4096
"""Shares among which a tenant's users are spread, where they share fairly too."""


class Order(Protocol):
    """Waiting sequences, and the counters of those who sent them.

    The head does not change while it waits for room, other than by arrivals, charges, removals and `arrange`: to skip
    it for somebody's smaller request would void the bound. A share is what goes in one line: a tenant's, one of its
    user's, or everything."""

    meter: Meter
    evens_out: bool
    """Whether who has been served more gives way to who has nothing running."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sequence]: ...

    def add(self, sequence: Sequence) -> None:
        """An arrival."""
        ...

    def put_back(self, sequence: Sequence) -> None:
        """A preempted sequence, in front of its tenant's others."""
        ...

    def head(self) -> Sequence | None:
        """Who goes next."""
        ...

    def upcoming(self, count: int) -> list[Sequence]:
        """The next few as it looks now, the head first: those whose adapters are worth fetching."""
        ...

    def take(self, sequence: Sequence) -> None:
        """Take a sequence out: admitted, or cancelled."""
        ...

    def share(self, sequence: Sequence) -> Iterable[Sequence]:
        """What waits in the share of a waiting sequence, in order."""
        ...

    def arrange(self, sequences: list[Sequence]) -> None:
        """These, of one share and in this order, go behind what else waits in it. Where an order has its own idea of
        who goes first in a share (cached prefixes), nothing happens."""
        ...

    def charge(self, sequence: Sequence, amount: int) -> None:
        """Service to its tenant, in micro-units; negative: a refund."""
        ...

    def recount(self, keys: Iterable[str]) -> None:
        """The counters of these have changed from outside."""
        ...

    def floor(self) -> int:
        """The counter to which somebody who comes now is lifted."""
        ...

    def rank(self, sequence: Sequence) -> Rank:
        """Among running sequences the greatest gives its pages back first."""
        ...

    def outranks(self, waiting: Sequence, running: Sequence) -> bool:
        """Whether the running one's tenant has been served more; never where `evens_out` is False."""
        ...


def tenant_of(sequence: Sequence) -> str:
    return sequence.tenant


def user_of(sequence: Sequence) -> str:
    """One of `USERS` shares: clients choose the names, so they must not fill memory; who collides shares a share."""
    return str(crc32(sequence.user.encode()) % USERS) if sequence.user else ""


class Line:
    """First come, first served, and no accounts: what waits of one key inside an order that keeps them."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[int, Sequence] = OrderedDict()  # by arrival, which is unique

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting.values())

    def add(self, sequence: Sequence) -> None:
        self._waiting[sequence.arrival] = sequence

    def put_back(self, sequence: Sequence) -> None:
        self._waiting[sequence.arrival] = sequence
        self._waiting.move_to_end(sequence.arrival, last=False)

    def head(self) -> Sequence | None:
        return next(iter(self._waiting.values()), None)

    def upcoming(self, count: int) -> list[Sequence]:
        return list(islice(self._waiting.values(), count))

    def take(self, sequence: Sequence) -> None:
        del self._waiting[sequence.arrival]

    def share(self, sequence: Sequence) -> Iterable[Sequence]:
        return self._waiting.values()

    def arrange(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self._waiting.move_to_end(sequence.arrival)

    def charge(self, sequence: Sequence, amount: int) -> None:
        pass


class Unlifted:
    """What orders have in common that keep to turns: others' service changes none, and nobody gives way."""

    evens_out = False

    def recount(self, keys: Iterable[str]) -> None:
        pass

    def outranks(self, waiting: Sequence, running: Sequence) -> bool:
        return False


class Fifo(Unlifted, Line):
    """First come, first served [VTC 5, FCFS]: charges are booked and decide nothing."""

    def __init__(self, meter: Meter | None = None) -> None:
        super().__init__()
        self.meter = meter or Meter()

    def charge(self, sequence: Sequence, amount: int) -> None:
        self.meter.charge(sequence.tenant, sequence.weight, amount)

    def floor(self) -> int:
        return 0  # nobody is lifted

    def rank(self, sequence: Sequence) -> Rank:
        return 0, sequence.arrival
