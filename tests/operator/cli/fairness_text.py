"""Expositions as a replica renders them, with prometheus_client, under the names that a runtime has."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX = "lorafleet_fairness_"
COUNTED = ("service", "rejected")


class _Replica(Collector):
    def __init__(self, whole: dict[str, float], tenants: dict[str, dict[str, float]]) -> None:
        self._whole = whole
        self._tenants = tenants

    def collect(self) -> Iterator[Metric]:
        for name, value in self._whole.items():
            gauge = GaugeMetricFamily(PREFIX + name, name, labels=["model_name"])
            gauge.add_metric(["tiny-135m"], value)
            yield gauge
        tokens = CounterMetricFamily(f"{PREFIX}tokens", "tokens", labels=["model_name", "tenant", "kind"])
        for tenant, values in self._tenants.items():
            for kind in ("prompt", "output", "cached"):
                tokens.add_metric(["tiny-135m", tenant, kind], values.get(kind, 0.0))
        yield tokens
        for name in ("weight", "counter", "running", "waiting", *COUNTED):
            of = CounterMetricFamily if name in COUNTED else GaugeMetricFamily
            family = of(PREFIX + name, name, labels=["model_name", "tenant"])
            for tenant, values in self._tenants.items():
                family.add_metric(["tiny-135m", tenant], values.get(name, 1.0 if name == "weight" else 0.0))
            yield family


def exposition(whole: dict[str, float] | None = None, **tenants: dict[str, float]) -> str:
    """The /metrics of one replica: numbers of the whole base model, and of each tenant by name."""
    registry = CollectorRegistry()
    registry.register(_Replica(whole or {}, tenants))
    return generate_latest(registry).decode()
