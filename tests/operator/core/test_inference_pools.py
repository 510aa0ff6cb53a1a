"""A base model's pods as a pool, and what its status says of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lorafleet_operator.core.inference_pools import EndpointPicker, inference_pool
from lorafleet_operator.core.manifests import selector
from lorafleet_operator.core.objects import ObjectKey
from lorafleet_operator.core.observed import Pools
from lorafleet_operator.core.planner import plan
from lorafleet_operator.core.status import statuses
from lorafleet_sim.fleets import base_model, desired, observed, replica

BASE = base_model()


def test_a_pool_has_the_name_and_the_pods_of_its_base_model_and_goes_with_it() -> None:
    pool = inference_pool(BASE, "u1", None)

    assert (pool["kind"], pool["metadata"]["name"]) == ("InferencePool", BASE.ref.name)
    assert pool["metadata"]["namespace"] == BASE.ref.namespace
    assert pool["metadata"]["ownerReferences"][0]["uid"] == "u1"
    assert pool["spec"] == {"selector": {"matchLabels": selector(BASE.ref.name)}, "targetPorts": [{"number": 8000}]}


def test_a_picker_is_a_service_that_may_be_named_for_the_base_model() -> None:
    pool = inference_pool(BASE, "u1", EndpointPicker("{name}-epp", 9003, "FailOpen"))

    assert pool["spec"]["endpointPickerRef"] == {
        "kind": "Service", "name": f"{BASE.ref.name}-epp", "port": {"number": 9003}, "failureMode": "FailOpen",
    }  # fmt: skip


@pytest.mark.parametrize(("pools", "told"), [
    ("off", []), ("missing", [("False", "CRDNotInstalled")]), ("there", [("True", "PoolApplied")]),
])  # fmt: skip
def test_a_base_models_status_says_whether_it_has_a_pool(pools: Pools, told: list[tuple[str, str]]) -> None:
    wanted = desired(BASE)
    seen = replace(observed(wanted, replica(BASE)), pools=pools)
    status = statuses(wanted, seen, plan(wanted, seen, 0.0), {}, "2026-01-01T00:00:00Z")
    conditions = status[ObjectKey("BaseModel", *BASE.ref)]["conditions"]

    assert [(c["status"], c["reason"]) for c in conditions if c["type"] == "GatewayIntegrated"] == told
