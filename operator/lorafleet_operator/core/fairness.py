"""How tenants share a replica: `.spec.fairness` from a document to settings, and from settings to `--fairness`. Pure.

Settings name the policy and the cost with all that counts; beyond them only what differs from its default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from lorafleet_operator.core.fields import Fields

POLICIES = ("VTC", "FCFS", "LCF", "RPM", "DRR", "DLPM")
DEFICIT = ("DRR", "DLPM")
COSTS = ("Linear", "Quadratic", "Piecewise", "Profiled", "KVTime")
BY_TOKENS = {"input": 1, "output": 2}
OF_KIND: Mapping[str, Mapping[str, float]] = {
    "Linear": BY_TOKENS, "Quadratic": BY_TOKENS, "KVTime": {**BY_TOKENS, "memory": 0.001},
}  # fmt: skip
"""What counts in a kind of cost when the document does not say."""
QUADRATIC_ONLY = ("product", "outputSquared", "constant")
TABLES = ("inputTable", "outputTable")
QUANTUM = 4096
MOST = 1_000_000_000
MOST_ADAPTERS = 10_000
SMALLEST = 0.000001
"""Runtimes count in whole millionths of a unit of service."""

Settings = dict[str, Any]


def read_fairness(fields: Fields) -> Settings:
    """The settings that `.spec.fairness` describes; mistakes go to its sink."""
    policy = fields.choice("policy", POLICIES, "VTC")
    abort = fields.section("earlyAbort")
    seconds = abort.number("ttftSeconds", 0.01, 3600)
    written = {
        "policy": policy,
        "cost": _read_cost(fields.section("cost")),
        "users": fields.choice("users", ("Tenant", "Fair"), "Tenant"),
        "prediction": fields.choice("prediction", ("None", "MovingAverage"), "None"),
        "requestsPerMinute": fields.integer("requestsPerMinute", 1, MOST),
        "quantum": fields.integer("quantum", 1, MOST),
        "earlyAbort": None if seconds is None else {"ttftSeconds": seconds},
        "clusterAdapters": fields.integer("clusterAdapters", 1, MOST_ADAPTERS),
    }
    if fields.has("earlyAbort") and not abort.has("ttftSeconds"):
        abort.wrong("ttftSeconds", "is required")
    if policy != "VTC" and (written["users"] != "Tenant" or written["prediction"] != "None"):
        fields.wrong("", "users: Fair and prediction: MovingAverage belong to the policy VTC")
    if fields.has("requestsPerMinute") != (policy == "RPM"):
        fields.wrong("", "requestsPerMinute belongs to the policy RPM, which needs it")
    if fields.has("quantum") and policy not in DEFICIT:
        fields.wrong("", "quantum belongs to the policies DRR and DLPM")
    abort.close()
    fields.close()
    return settings(written)


def settings(written: Mapping[str, Any]) -> Settings:
    """The one form of equal settings: what counts is written out, what is the default beside it is left out."""
    policy, cost = written.get("policy", "VTC"), written.get("cost") or {}
    kind = cost.get("kind", "Linear")
    found = {"policy": policy, "cost": {"kind": kind, **OF_KIND.get(kind, {}), **cost}}
    if policy in DEFICIT:
        found["quantum"] = written.get("quantum") or QUANTUM
    defaults = {
        "users": "Tenant", "prediction": "None", "requestsPerMinute": None, "earlyAbort": None, "clusterAdapters": None,
    }  # fmt: skip
    for name, default in defaults.items():
        if (value := written.get(name) or default) != default:
            found[name] = value
    return found


def fairness_arguments(written: Mapping[str, Any]) -> list[str]:
    """`--fairness` and its JSON; nothing for the default, so that no pod changes that never asked for another.

    Equal settings give equal text: a pod is told by it, and replaced when it differs.
    """
    chosen = _whole(settings(written))
    if chosen == settings({}):
        return []
    return ["--fairness", json.dumps(chosen, sort_keys=True, separators=(",", ":"))]


def _whole(value: Any) -> Any:
    """2.0 and 2 are one number, and must be one text."""
    if isinstance(value, Mapping):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _read_cost(fields: Fields) -> Settings:
    kind = fields.choice("kind", COSTS, "Linear")
    weights = {name: fields.number(name, 0, 1e6) for name in (*BY_TOKENS, *QUADRATIC_ONLY, "memory")}
    tables = {name: _read_table(fields, name) for name in TABLES}
    if kind not in OF_KIND and (fields.has("input") or fields.has("output")):
        fields.wrong("", "input and output belong to the kinds Linear, Quadratic and KVTime")
    if kind != "Quadratic" and any(fields.has(name) for name in QUADRATIC_ONLY):
        fields.wrong("", "product, outputSquared and constant belong to the kind Quadratic")
    if kind != "KVTime" and fields.has("memory"):
        fields.wrong("", "memory belongs to the kind KVTime")
    if any(fields.has(name) != (kind == "Piecewise") for name in TABLES):
        fields.wrong("", "inputTable and outputTable belong to the kind Piecewise, which needs both")
    fields.close()
    written = {name: value for name, value in {**weights, **tables}.items() if value not in (None, [])}
    if _counts_nothing({**OF_KIND.get(kind, {}), **written}):
        fields.wrong("", "no weight reaches 0.000001, so that nothing would be counted: write a larger one")
    return {"kind": kind, **written}


def _counts_nothing(cost: Mapping[str, Any]) -> bool:
    """An empty cost is that of a kind which gets its weights elsewhere."""
    costs = [point["cost"] for name in TABLES for point in cost.get(name, ())]
    weights = [value for name, value in cost.items() if name not in TABLES]
    return bool(costs or weights) and max((*costs, *weights)) < SMALLEST


def _read_table(fields: Fields, name: str) -> list[dict[str, float]]:
    points = []
    for item in fields.sections(name, 32):
        tokens, cost = item.integer("tokens", 0, 1048576), item.number("cost", 0, 1e9)
        for key in ("tokens", "cost"):
            if not item.has(key):
                item.wrong(key, "is required")
        item.close()
        points.append({"tokens": float(tokens or 0), "cost": float(cost or 0)})
    if fields.has(name) and not points:
        fields.wrong(name, "must hold at least one point")
    if points and not any(point["tokens"] for point in points):
        fields.wrong(name, "must have a point beyond 0 tokens: its slope goes on from there")
    points.sort(key=lambda point: point["tokens"])
    if any(a["tokens"] == b["tokens"] or a["cost"] > b["cost"] for a, b in pairwise(points)):
        fields.wrong(name, "each point must have tokens of its own, and cost must not fall as tokens rise")
    return points
