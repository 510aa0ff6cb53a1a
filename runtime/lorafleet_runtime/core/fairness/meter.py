"""From service to counters: divides every charge by its tenant's weight, exactly. Knows no queue."""

from __future__ import annotations

from dataclasses import dataclass

from lorafleet_runtime.core.fairness.cost import MICRO
from lorafleet_runtime.core.fairness.counters import CounterTable


@dataclass(slots=True)
class _Share:
    """What has been charged at one weight: whole sums are divided, so that no rounding adds up."""

    given: float  # the weight as it came
    weight: int  # in millionths
    charged: int = 0
    charged_virtual: int = 0
    refunded: int = 0
    refunded_virtual: int = 0


class Meter:
    """Charges keys (tenants, or one tenant's users) in a table of counters.

    While a weight stays, a key's own counter is floor(Σ charges / weight). A weight that changes divides what comes
    after it, and leaves what was: a tenant that buys a larger share is not forgiven its past."""

    def __init__(self, table: CounterTable | None = None) -> None:
        self.table = table or CounterTable("own")
        self._shares: dict[str, _Share] = {}

    def counter(self, key: str) -> int:
        """Service that a key has received, in micro-units over its weight."""
        return self.table.counter(key)

    def charge(self, key: str, weight: float, amount: int) -> None:
        """Charge micro-units of service, or give them back when `amount` is negative."""
        share = self._shares.get(key)
        if share is None or share.given != weight:
            share = self._begin_share(key, weight)
        if amount >= 0:
            share.charged += amount
            virtual = share.charged * MICRO // share.weight
            self.table.spend(key, virtual - share.charged_virtual)
            share.charged_virtual = virtual
        else:
            share.refunded -= amount
            virtual = share.refunded * MICRO // share.weight
            self.table.refund(key, virtual - share.refunded_virtual)
            share.refunded_virtual = virtual

    def _begin_share(self, key: str, weight: float) -> _Share:
        if not 0 < weight < float("inf") or round(weight * MICRO) < 1:
            raise ValueError(f"the weight of {key!r} is {weight}: it must be positive")
        share = self._shares[key] = _Share(weight, round(weight * MICRO))
        return share
