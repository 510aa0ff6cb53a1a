"""Grafana's dashboards: they ask for metrics that exist, of the source that is chosen, in panels side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "charts" / "lorafleet" / "files" / "dashboards"
FAIRNESS = {
    f"lorafleet_fairness_{name}" for name in (
        "counter", "service_total", "tokens_total", "weight", "waiting", "running", "rejected_total", "floor", "spread",
        "bound", "backlogged_tenants", "jain", "lifts_total", "refunds_total", "fleet_bound",
    )
}  # fmt: skip
KNOWN = {*FAIRNESS, "lorafleet_gateway_quota_rejected_total"}
METRIC = re.compile(r"\b(?:lorafleet_|vllm:)\w+")
LABELS = {"model_name", "tenant", "kind", "limit", "base_model", "instance"}


@pytest.fixture(params=sorted(FOLDER.glob("*.json")), ids=lambda path: path.name)
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(request.param.read_text())
    return found


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query")


def test_there_is_one() -> None:
    assert [path.name for path in FOLDER.glob("*.json")] == ["tenants.json"]


def test_every_metric_that_is_asked_for_exists(dashboard: dict[str, Any]) -> None:
    asked = [METRIC.findall(query) for query in queries(dashboard)]

    assert all(asked)
    assert {name for names in asked for name in names} <= KNOWN


def test_queries_group_and_name_by_labels_that_metrics_have(dashboard: dict[str, Any]) -> None:
    groups = [group for q in queries(dashboard) for group in re.findall(r"\b(?:by|on) \(([\w, ]*)\)", q)]
    legends = [target["legendFormat"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = [name for text in legends for name in re.findall(r"{{(\w+)}}", text)]

    assert {name for group in groups for name in group.split(", ")} | set(named) <= LABELS
    assert all(query.count("(") == query.count(")") for query in queries(dashboard))


def test_the_source_is_the_one_that_is_chosen(dashboard: dict[str, Any]) -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    asking = [*dashboard["panels"], *(t for p in dashboard["panels"] for t in p["targets"])]

    assert [part["datasource"] for part in asking] == [chosen] * len(asking)
    assert dashboard["templating"]["list"][0]["name"] == "datasource"


def test_panels_have_ids_titles_and_places_of_their_own(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    places = [panel["gridPos"] for panel in panels]

    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]


def test_what_an_operator_of_tenants_asks_has_a_panel(dashboard: dict[str, Any]) -> None:
    text = " ".join(queries(dashboard))

    for name in ("service_total", "counter", "spread", "bound", "fleet_bound", "waiting", "jain"):
        assert f"lorafleet_fairness_{name}" in text
    assert "lorafleet_gateway_quota_rejected_total" in text
