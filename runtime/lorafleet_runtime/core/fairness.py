"""The admission queue as a Virtual Token Counter over tenants [VTC, algorithm 2].

Each tenant has a counter of the service that it has received: weighted prompt and output tokens over its weight. The
waiting tenant with the smallest counter goes next. A tenant that comes back is lifted to the others' level, so that
idling saves up nothing. Counters are integers, in micro-units of service."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from lorafleet_runtime.core.sequence import Sequence

MICRO = 1_000_000
INPUT_COST, OUTPUT_COST = 1, 2
"""Linear cost: an output token counts as two prompt tokens."""


class FairQueue:
    """Waiting sequences, one FIFO a tenant. The head does not change while it waits for room: skipping it for another
    tenant's smaller request would void the bound."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Sequence]] = {}  # tenants with something waiting
        self._counters: dict[str, int] = {}
        self._last_left: str | None = None

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def __iter__(self) -> Iterator[Sequence]:
        for queue in self._queues.values():
            yield from queue

    def counter(self, tenant: str) -> int:
        """Service that a tenant has received, in micro-units over its weight; 0 for an unknown one."""
        return self._counters.get(tenant, 0)

    def add(self, sequence: Sequence) -> None:
        """Queue an arrival, and lift its tenant if nothing of it was waiting."""
        tenant = sequence.tenant
        if tenant not in self._queues:
            self._counters[tenant] = max(self.counter(tenant), self._floor())
        self._queues.setdefault(tenant, deque()).append(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Return a preempted sequence to the front of its tenant's queue: no arrival, so no lift."""
        self._queues.setdefault(sequence.tenant, deque()).appendleft(sequence)

    def head(self) -> Sequence | None:
        """Who goes next; ties go to the earlier arrival."""
        if not self._queues:
            return None
        return min((q[0] for q in self._queues.values()), key=lambda s: (self._counters[s.tenant], s.arrival))

    def pop(self, sequence: Sequence) -> None:
        """Admit the head, and charge its prompt here and now: charging after a batch has been filled would let one
        tenant take all of it. What is computed again after a preemption is not charged again."""
        self.remove(sequence)
        if not sequence.charged:
            sequence.charged = True
            self._charge(sequence, INPUT_COST * sequence.prompt_len)

    def charge_output(self, sequence: Sequence) -> None:
        """One more output token was computed."""
        self._charge(sequence, OUTPUT_COST)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, without a charge."""
        queue = self._queues[sequence.tenant]
        queue.remove(sequence)
        if not queue:
            del self._queues[sequence.tenant]
            self._last_left = sequence.tenant

    def _charge(self, sequence: Sequence, service: int) -> None:
        self._counters[sequence.tenant] = self.counter(sequence.tenant) + round(service * MICRO / sequence.weight)

    def _floor(self) -> int:
        if self._queues:
            return min(self._counters[tenant] for tenant in self._queues)
        return self.counter(self._last_left) if self._last_left is not None else 0
