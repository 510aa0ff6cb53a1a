"""`.spec.fairness` on its way to the runtime: one text for equal settings, and none for the default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafleet_operator.core.fairness import fairness_arguments, read_fairness
from lorafleet_operator.core.fields import Fields, Sink
from lorafleet_operator.core.objects import BaseModel, Ref, Source
from lorafleet_operator.core.runtime_arguments import arguments
from lorafleet_operator.local.commands import runtime_command

POINTS = [{"tokens": 0, "cost": 0}, {"tokens": 100, "cost": 50}]


def read(document: dict[str, Any]) -> dict[str, Any]:
    sink = Sink("a document")
    settings = read_fairness(Fields(document, ".spec.fairness", sink))
    assert sink.problems == []
    return settings


def argument(document: dict[str, Any]) -> dict[str, Any]:
    """The JSON that a runtime gets."""
    flag, text = fairness_arguments(read(document))
    assert flag == "--fairness"
    return dict(json.loads(text))


@pytest.mark.parametrize("document", [
    {}, {"policy": "VTC"}, {"cost": {}}, {"cost": {"kind": "Linear", "input": 1.0, "output": 2}},
    {"users": "Tenant", "prediction": "None"},
])  # fmt: skip
def test_the_default_is_not_passed_on_however_it_is_written(document: dict[str, Any]) -> None:
    assert fairness_arguments(read(document)) == []
    assert fairness_arguments(document) == []


@pytest.mark.parametrize(("document", "passed"), [
    ({"policy": "FCFS"}, {"policy": "FCFS", "cost": {"kind": "Linear", "input": 1, "output": 2}}),
    ({"policy": "RPM", "requestsPerMinute": 60},
     {"policy": "RPM", "requestsPerMinute": 60, "cost": {"kind": "Linear", "input": 1, "output": 2}}),
    ({"policy": "DRR"}, {"policy": "DRR", "quantum": 4096, "cost": {"kind": "Linear", "input": 1, "output": 2}}),
    ({"users": "Fair", "prediction": "MovingAverage", "cost": {"output": 3}},
     {"policy": "VTC", "users": "Fair", "prediction": "MovingAverage",
      "cost": {"kind": "Linear", "input": 1, "output": 3}}),
    ({"earlyAbort": {"ttftSeconds": 6.0}, "clusterAdapters": 8},
     {"policy": "VTC", "cost": {"kind": "Linear", "input": 1, "output": 2}, "earlyAbort": {"ttftSeconds": 6},
      "clusterAdapters": 8}),
    ({"cost": {"kind": "KVTime", "input": 0}},
     {"policy": "VTC", "cost": {"kind": "KVTime", "input": 0, "output": 2, "memory": 0.001}}),
    ({"cost": {"kind": "Quadratic", "product": 0.04}},
     {"policy": "VTC", "cost": {"kind": "Quadratic", "input": 1, "output": 2, "product": 0.04}}),
    ({"cost": {"kind": "Piecewise", "inputTable": POINTS[::-1], "outputTable": POINTS}},
     {"policy": "VTC", "cost": {"kind": "Piecewise", "inputTable": POINTS, "outputTable": POINTS}}),
])  # fmt: skip
def test_the_rest_is_passed_on_with_all_that_counts(document: dict[str, Any], passed: dict[str, Any]) -> None:
    assert argument(document) == passed


def test_equal_settings_are_one_text() -> None:
    one = {"policy": "DRR", "quantum": 4096, "cost": {"output": 3, "kind": "Linear"}}
    other = {"cost": {"output": 3.0, "input": 1.0}, "policy": "DRR", "prediction": "None"}

    assert fairness_arguments(read(one)) == fairness_arguments(read(other))
    assert fairness_arguments(read(one)) == fairness_arguments(one)
    assert ".0" not in fairness_arguments(read(other))[1]


def test_processes_and_pods_are_told_the_same() -> None:
    base = BaseModel(Ref("models", "tiny"), "tiny", Source("package://weights/model.gguf"), fairness={"policy": "LCF"})
    pod = arguments(base, 30)
    process = runtime_command(
        ("runtime",), base, Path("m.gguf"), host="127.0.0.1", port=1, admin_port=2, log_format="json"
    )

    assert pod[pod.index("--fairness") + 1] == process[process.index("--fairness") + 1]
    assert json.loads(pod[pod.index("--fairness") + 1])["policy"] == "LCF"
