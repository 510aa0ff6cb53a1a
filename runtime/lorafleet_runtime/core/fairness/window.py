"""What tenants have received lately: the rate that the bound needs, and Jain's index of how even it was."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

WINDOW_SECONDS = 10.0
_SLICE_SECONDS = 1.0


class Window:
    """Service over the weight, per tenant, of the last ten seconds, in micro-units. `now` is monotonic seconds."""

    def __init__(self) -> None:
        self._slices: deque[tuple[float, dict[str, int]]] = deque()
        self._sums: dict[str, int] = {}

    def add(self, tenant: str, amount: int, now: float) -> None:
        """A tenant has received so much since it was last added."""
        if not self._slices or now - self._slices[-1][0] >= _SLICE_SECONDS:
            self._slices.append((now, {}))
        newest = self._slices[-1][1]
        newest[tenant] = newest.get(tenant, 0) + amount
        self._sums[tenant] = self._sums.get(tenant, 0) + amount

    def rate(self, now: float) -> int:
        """Micro-units a second, of all tenants together."""
        self._expire(now)
        if not self._slices:
            return 0
        seconds = max(now - self._slices[0][0], _SLICE_SECONDS)
        return round(sum(self._sums.values()) / seconds)

    def jain(self, tenants: Iterable[str], now: float) -> float:
        """(Σx)² / (n·Σx²) over what these tenants have received: 1 when all had the same, 1/n when one had everything.
        1 when there is nothing to compare."""
        self._expire(now)
        received = [self._sums.get(tenant, 0) for tenant in tenants]
        squares = sum(x * x for x in received)
        return sum(received) ** 2 / (len(received) * squares) if squares else 1.0

    def _expire(self, now: float) -> None:
        while self._slices and self._slices[0][0] < now - WINDOW_SECONDS:
            _, amounts = self._slices.popleft()
            for tenant, amount in amounts.items():
                self._sums[tenant] -= amount
                if not self._sums[tenant]:
                    del self._sums[tenant]
