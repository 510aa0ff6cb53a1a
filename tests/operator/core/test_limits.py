"""What this release refuses, each by its field path."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lorafleet_operator.core.limits import adapter_limits, base_model_limits
from lorafleet_operator.core.objects import BaseModel
from lorafleet_sim.fleets import adapter, base_model

BASE = base_model()


def engine(**settings: Any) -> BaseModel:
    return replace(BASE, engine=replace(BASE.engine, **settings))


@pytest.mark.parametrize(("base", "path"), [
    (replace(engine(tensor_parallel=2), runtime={"resources": {"limits": {"nvidia.com/gpu": 1}}}),
     ".spec.engine.tensorParallel: 2 ranks need a device each, and .spec.runtime.resources.limits has nvidia.com/gpu"),
    (engine(memory_fraction=0.9), ".spec.engine.memoryFraction"),
    (replace(BASE, fairness={"cost": {"kind": "Profiled"}}), ".spec.fairness.cost.kind"),
    (replace(BASE, migration={"enabled": True}), ".spec.migration.enabled"),
])  # fmt: skip
def test_a_setting_that_cannot_be_honoured_is_refused_by_its_path(base: BaseModel, path: str) -> None:
    refused = base_model_limits(base)

    assert refused is not None
    assert refused.reason == "NotSupported"
    assert refused.message.startswith(path)


@pytest.mark.parametrize("base", [
    BASE,
    engine(tensor_parallel=2),
    replace(engine(tensor_parallel=2), runtime={"resources": {"limits": {"nvidia.com/gpu": "2", "cpu": "1"}}}),
    replace(BASE, fairness={"policy": "VTC", "cost": {"kind": "Linear", "input": 1, "output": 2}}),
    *(replace(BASE, fairness={"policy": policy}) for policy in ("VTC", "FCFS", "LCF", "RPM", "DRR")),
    *(replace(BASE, fairness={"cost": {"kind": kind}}) for kind in ("Linear", "Quadratic", "Piecewise", "KVTime")),
    replace(BASE, fairness={"cost": {"kind": "Linear", "output": 3}, "users": "Fair", "prediction": "MovingAverage"}),
    replace(BASE, fairness={"earlyAbort": {"ttftSeconds": 2}, "clusterAdapters": 8}),
    replace(BASE, fairness={"cost": {"kind": "Linear"}}, migration={"enabled": False, "hi": 2}),
])  # fmt: skip
def test_what_can_be_honoured_is_not_refused(base: BaseModel) -> None:
    assert base_model_limits(base) is None


def test_every_refused_setting_is_named_at_once() -> None:
    refused = base_model_limits(replace(engine(memory_fraction=0.5), migration={"enabled": True}))

    assert refused is not None
    assert refused.message.count(".spec.") == 2


def test_an_adapter_is_refused_only_where_it_must_be_merged() -> None:
    refused = adapter_limits(adapter(merge="Always"))

    assert refused is not None and refused.message.startswith(".spec.merge")
    assert adapter_limits(adapter(merge="Auto")) is None
    assert adapter_limits(adapter(merge="Never")) is None
