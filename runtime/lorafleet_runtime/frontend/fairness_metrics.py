"""How tenants share this replica, for Prometheus. Service in units (a prompt token at the default cost), not micro."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter

from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from lorafleet_runtime.core.fairness.cost import MICRO
from lorafleet_runtime.frontend.tenant_board import TenantBoard
from lorafleet_runtime.protocol import TenantRow

MOST_TENANTS = 1000
OTHER = "other"
"""What tenants past the `MOST_TENANTS` with the most service are counted as."""

_Sample = tuple[tuple[str, ...], float]
_Family = Gauge | Counter


class FairnessCollector(Collector):
    """Reads the board whenever it is scraped."""

    def __init__(self, board: TenantBoard, model_name: str) -> None:
        self._board = board
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        sharing = self._board.sharing
        for name, text, value in (
            ("floor", "Counter that a tenant who comes now is lifted to", sharing.floor / MICRO),
            ("spread", "Greatest less smallest counter of the tenants that wait", sharing.spread / MICRO),
            ("bound", "2U: how far two waiting tenants' service can differ on this replica", sharing.bound / MICRO),
            ("backlogged_tenants", "Tenants with something waiting", sharing.backlogged),
            ("jain", "Jain's index of the waiting tenants' service in the last ten seconds", sharing.jain),
        ):
            yield self._family(Gauge, name, text, [((), value)])
        yield self._family(Counter, "lifts", "Tenants lifted to the floor when they came back", [((), sharing.lifts)])
        yield self._family(Counter, "refunds", "Charges given back for what was not executed", [((), sharing.refunds)])
        rows = sorted(self._board.rows.values(), key=lambda row: (-row.service, row.name))
        shown, rest = rows[:MOST_TENANTS], rows[MOST_TENANTS:]
        named = dict.fromkeys([*(row.name for row in shown), *self._board.names()])
        counters = [((name,), self._board.counter(name) / MICRO) for name in list(named)[:MOST_TENANTS]]
        yield self._family(Gauge, "counter", "Service over the weight, and lifts", counters, ("tenant",))
        weights = [((row.name,), row.weight) for row in shown]
        yield self._family(Gauge, "weight", "Weight of the tenant", weights, ("tenant",))
        for name, text, value_of in _SUMS:
            sums = _summed(shown, rest, value_of)
            yield self._family(Gauge, name, text, sums, ("tenant",))
        service = _summed(shown, rest, lambda row: row.service / MICRO)
        yield self._family(Counter, "service", "Service given, before the weight", service, ("tenant",))
        tokens: list[_Sample] = [
            ((tenant, kind), value)
            for kind in ("prompt", "output", "cached")
            for (tenant,), value in _summed(shown, rest, attrgetter(f"{kind}_tokens"))
        ]
        yield self._family(Counter, "tokens", "Tokens computed", tokens, ("tenant", "kind"))
        aborted = _summed(shown, rest, lambda row: row.aborted)
        yield self._family(Counter, "aborted", "Requests given up before their first token", aborted, ("tenant",))
        rejected = [((name,), float(self._board.rejected(name))) for name in list(named)[:MOST_TENANTS]]
        yield self._family(Counter, "rejected", "Requests that gateways refused over quota", rejected, ("tenant",))

    def _family(
        self, kind: type[_Family], name: str, text: str, samples: Iterable[_Sample], labels: tuple[str, ...] = ()
    ) -> Metric:
        family = kind(f"lorafleet_fairness_{name}", text, labels=["model_name", *labels])
        for values, value in samples:
            family.add_metric([self._model_name, *values], value)
        return family


_SUMS: tuple[tuple[str, str, Callable[[TenantRow], float]], ...] = (
    ("waiting", "Requests that wait", lambda row: row.waiting),
    ("running", "Requests that run", lambda row: row.running),
)


def _summed(shown: list[TenantRow], rest: list[TenantRow], value_of: Callable[[TenantRow], float]) -> list[_Sample]:
    samples: list[_Sample] = [((row.name,), value_of(row)) for row in shown]
    return [*samples, ((OTHER,), sum(map(value_of, rest)))] if rest else samples
