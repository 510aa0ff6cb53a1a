"""What early abort is held against: last come first served, and S-LoRA's own rule (MLSys'24, section 6.3; the
artifact's abort_req_queue). First come first served is the runtime's own `Fifo`."""

from __future__ import annotations

from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.fairness.order import Fifo
from lorafleet_runtime.core.sequence import Sequence

MARGIN = 0.5
"""Seconds before the deadline at which S-LoRA gives up, whatever the prompt."""


class TwoWays(Fifo):
    """From the oldest, or from the newest."""

    def __init__(self, newest_first: bool = False) -> None:
        super().__init__()
        self.newest_first = newest_first

    def head(self) -> Sequence | None:
        if not self.newest_first or not self._waiting:
            return super().head()
        return self._waiting[next(reversed(self._waiting))]

    def upcoming(self, count: int) -> list[Sequence]:
        waiting = list(self._waiting.values())
        return (waiting[::-1] if self.newest_first else waiting)[:count]


def last_come_first_served() -> FairQueue:
    """Without abort."""
    return FairQueue(TwoWays(newest_first=True))


class SloraAbort(FairQueue):
    """At each attempt to admit: who has waited for `ttft` less 0.5 s is given up, then the newest first if more came
    since the last admission than one lets in, on average, else the oldest first."""

    def __init__(self, ttft: float) -> None:
        self._ways = TwoWays()
        super().__init__(self._ways)
        self._ttft = ttft
        self._rate = self._batch = 1
        self._left_over = 0  # that waited after the last admission
        self._admitted = self._left_after = 0

    def expired(self, now: float) -> list[Sequence]:
        if self._admitted:
            self._left_over = self._left_after
            self._batch = max(int(0.7 * self._admitted + 0.3 * self._batch), 1)
            self._admitted = 0
        # Both averages are cut to whole numbers each time, so that one arrival a time counts as none.
        self._rate = int(0.7 * (len(self) - self._left_over) + 0.3 * self._rate)
        self._ways.newest_first = self._rate >= self._batch
        return [sequence for sequence in self if now - sequence.arrived + MARGIN >= self._ttft]

    def admit(self, sequence: Sequence) -> None:
        super().admit(sequence)
        self._admitted += 1
        self._left_after = len(self)
