"""Every metric of the gateway, by name. Series are bounded: past a cap, new models are counted as `other`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
UNKNOWN = "unknown"  # no tenant (401), or no such model (404): client-chosen text never becomes a label
OTHER = "other"
MOST_MODELS = 5000
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


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
