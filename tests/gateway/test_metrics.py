from __future__ import annotations

from lorafleet_gateway import metrics
from lorafleet_gateway.metrics import Metrics


def test_series_are_bounded_and_known_models_keep_theirs() -> None:
    made = Metrics()
    labels = {made.model_label("acme", f"model-{i}") for i in range(metrics.MOST_MODELS + 100)}

    assert len(labels) == metrics.MOST_MODELS + 1
    assert metrics.OTHER in labels
    assert made.model_label("acme", "model-0") == "model-0"


def test_the_names_are_the_ones_promised() -> None:
    names = {family.name for family in Metrics().registry.collect()}

    assert names == {
        "lorafleet_gateway_requests",
        "lorafleet_gateway_time_to_first_byte_seconds",
        "lorafleet_gateway_request_duration_seconds",
        "lorafleet_gateway_requests_in_flight",
        "lorafleet_gateway_resumes",
        "lorafleet_gateway_upstream_errors",
        "lorafleet_gateway_quota_rejected",
        "lorafleet_fairness_fleet_bound",
        "lorafleet_fairness_fleet_spread",
        "lorafleet_fairness_exchange_age_seconds",
        "lorafleet_fairness_exchanges",
        "lorafleet_fairness_rejected_tables",
    }
