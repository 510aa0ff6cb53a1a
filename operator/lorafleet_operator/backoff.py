"""How long to wait after the n-th failure in a row. Pure: the jitter is an argument."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Doubles from `first` to `limit` seconds. Jitter takes off up to half: crashed replicas do not march in step."""

    first: float = 0.5
    limit: float = 30.0

    def delay(self, failures: int, jitter: float) -> float:
        """Seconds to wait after `failures` failures in a row (at least 1); `jitter` is drawn from [0, 1)."""
        doublings = min(max(failures, 1) - 1, 30)
        return min(self.first * 2.0**doublings, self.limit) * (1.0 - 0.5 * jitter)


RESTARTS = Backoff()
