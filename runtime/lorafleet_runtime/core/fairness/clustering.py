"""Adapter clustering: batches of about so many distinct adapters [S-LoRA 4.4, `--batch-num-adapters`].

A soft cap. While as many adapters run as it says, the next of a share is the first whose adapter runs already; when
there is none, the head goes all the same, as S-LoRA has it. Between tenants nothing changes: it is the order's share
that is searched. S-LoRA lets those whose adapters run pass the others for ever; here a head is passed at most `PASSES`
times, so that the k-th of a share goes after at most (k + 1)·(PASSES + 1) admissions of that share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice

from lorafleet_runtime.core.sequence import Sequence

PASSES = 16
LOOK = 256
"""So many of a share are looked at."""


class Clustering:
    """Which adapters run, and whom that lets pass."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: Counter[int] = Counter()  # sequences by adapter's handle
        self._passed: dict[int, int] = {}  # heads by arrival -> how often they were passed

    def choose(self, head: Sequence, share: Iterable[Sequence]) -> Sequence:
        """Who goes: the head, or one behind it in its share."""
        if self._runs(head) or len(self._running) < self._most or self._passed.get(head.arrival, 0) >= PASSES:
            return head
        return next(filter(self._runs, islice(share, LOOK)), head)

    def admitted(self, sequence: Sequence, head: Sequence | None) -> None:
        """`sequence` was let in while `head` was first."""
        self._passed.pop(sequence.arrival, None)
        if head is not None and head is not sequence:
            self._passed[head.arrival] = self._passed.get(head.arrival, 0) + 1
        if sequence.adapter is not None:
            self._running[sequence.adapter.handle] += 1

    def left(self, sequence: Sequence) -> None:
        """A running sequence has ended, or waits again."""
        if sequence.adapter is not None:
            self._running[sequence.adapter.handle] -= 1
            if not self._running[sequence.adapter.handle]:
                del self._running[sequence.adapter.handle]

    def gone(self, sequence: Sequence) -> None:
        """A waiting one has left."""
        self._passed.pop(sequence.arrival, None)

    def _runs(self, sequence: Sequence) -> bool:
        """The base model alone costs no adapter."""
        return sequence.adapter is None or sequence.adapter.handle in self._running
