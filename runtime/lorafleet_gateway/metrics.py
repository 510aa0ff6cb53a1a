"""Every metric of the gateway, by name. Series are bounded: past a cap, new models are counted as `other`."""

from __future__ import annotations

import contextlib

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNKNOWN = "unknown"  # no tenant (401), or no such model (404): client-chosen text never becomes a label
OTHER = "other"
MOST_MODELS = 5000
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class FairnessMetrics:
    """How far apart tenants may come over all replicas of a base model, and how the exchange that keeps them goes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.fleet_bound = Gauge(
            "lorafleet_fairness_fleet_bound",
            "How far two backlogged tenants may come apart over all ready replicas, in units of service.",
            ("base_model",),
            registry=registry,
        )
        self.fleet_spread = Gauge(
            "lorafleet_fairness_fleet_spread",
            "How far backlogged tenants are apart, the most that a ready replica sees, in units of service.",
            ("base_model",),
            registry=registry,
        )
        self.exchange_age = Gauge(
            "lorafleet_fairness_exchange_age_seconds",
            "Since the last exchange of counters with the ready replica that was heard of least recently.",
            ("base_model",),
            registry=registry,
        )
        self.exchanges = Counter(
            "lorafleet_fairness_exchanges",
            "Exchanges of counters with replicas: ok, unsupported (404), refused (400), failed, or not believed.",
            ("base_model", "result"),
            registry=registry,
        )
        self.rejected_tables = Counter(
            "lorafleet_fairness_rejected_tables",
            "Answers of replicas that were not believed.",
            ("base_model",),
            registry=registry,
        )

    def forget_base(self, base_model: str) -> None:
        """A base model is gone: it has no fairness any more."""
        for gauge in (self.fleet_bound, self.fleet_spread, self.exchange_age):
            with contextlib.suppress(KeyError):
                gauge.remove(base_model)


class Metrics:
    """One process's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._models: set[tuple[str, str]] = set()
        self.requests = Counter(
            "lorafleet_gateway_requests",
            "Requests answered, by tenant, model and status (499: the client left).",
            ("tenant", "model", "code"),
            registry=registry,
        )
        self.first_byte = Histogram(
            "lorafleet_gateway_time_to_first_byte_seconds",
            "From a request's arrival to its answer's first byte.",
            ("base_model",),
            registry=registry,
            buckets=_SECONDS,
        )
        self.duration = Histogram(
            "lorafleet_gateway_request_duration_seconds",
            "From a request's arrival to its answer's last byte.",
            ("base_model",),
            registry=registry,
            buckets=_SECONDS,
        )
        self.in_flight = Gauge(
            "lorafleet_gateway_requests_in_flight",
            "Requests that have arrived and are not answered yet.",
            registry=registry,
        )
        self.resumes = Counter(
            "lorafleet_gateway_resumes",
            "Streams continued on a replica after the one they began on was lost.",
            ("base_model",),
            registry=registry,
        )
        self.upstream_errors = Counter(
            "lorafleet_gateway_upstream_errors",
            "Attempts that failed: Lost (died, unreachable), NotHere (cannot serve now) or Moved.",
            ("base_model", "kind"),
            registry=registry,
        )
        self.quota_rejected = Counter(
            "lorafleet_gateway_quota_rejected",
            "Requests refused over a quota, by tenant and limit.",
            ("tenant", "limit"),
            registry=registry,
        )
        self.fairness = FairnessMetrics(registry)

    def model_label(self, tenant: str, model: str) -> str:
        """`model`, or `other` once this process has seen `MOST_MODELS` pairs of tenant and model."""
        pair = (tenant, model)
        if pair not in self._models:
            if len(self._models) >= MOST_MODELS:
                return OTHER
            self._models.add(pair)
        return model

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)
