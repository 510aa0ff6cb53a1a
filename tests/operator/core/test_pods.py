"""What a pod's record says about a replica."""

from __future__ import annotations

from typing import Any

import pytest

from lorafleet_operator.core.manifests import ADAPTERS_GATE, BASE_MODEL_LABEL, SPEC_HASH
from lorafleet_operator.core.pods import pod_facts, replica_names


def pod(status: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    head = {"name": "p", "namespace": "models", "uid": "u", "labels": {BASE_MODEL_LABEL: "smol"},
            "annotations": {SPEC_HASH: "h"}}  # fmt: skip
    return {"metadata": {**head, **metadata}, "status": status or {}}


def test_a_pod_without_our_label_is_none_of_ours() -> None:
    assert pod_facts({"metadata": {"name": "other"}}) is None


def test_a_running_pod() -> None:
    container = {"name": "runtime", "state": {"running": {}}, "restartCount": 2}
    gate = {"type": ADAPTERS_GATE, "status": "True"}
    status = {"podIP": "10.0.0.1", "containerStatuses": [container], "conditions": [gate]}
    facts = pod_facts(pod(status))
    assert facts is not None
    assert (facts.ip, facts.running, facts.restarts, facts.gate) == ("10.0.0.1", True, 2, True)
    assert (str(facts.base), facts.spec_hash, facts.failure, facts.leaving) == ("models/smol", "h", "", False)


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (
            {"containerStatuses": [{"name": "runtime", "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                                    "lastState": {"terminated": {"exitCode": 2, "message": "no such model\n"}}}]},
            "CrashLoopBackOff, its container ended with status 2: no such model",
        ),
        (
            {"containerStatuses": [{"name": "runtime", "state": {"waiting": {
                "reason": "ImagePullBackOff", "message": "not found"}}}]},
            "ImagePullBackOff: not found",
        ),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                             "message": "0/3 nodes have nvidia.com/gpu"}]},
            "Unschedulable: 0/3 nodes have nvidia.com/gpu",
        ),
        ({"containerStatuses": [{"name": "runtime", "state": {"waiting": {"reason": "ContainerCreating"}}}]}, ""),
    ],
)  # fmt: skip
def test_why_a_pod_does_not_come_up_is_said_in_the_apis_words(status: dict[str, Any], failure: str) -> None:
    facts = pod_facts(pod(status))
    assert facts is not None
    assert facts.failure == failure


@pytest.mark.parametrize(
    "found", [pod(deletionTimestamp="2026-01-01T00:00:00Z"), pod({"phase": "Failed"})], ids=["deleted", "evicted"]
)
def test_a_pod_that_goes_takes_no_new_work(found: dict[str, Any]) -> None:
    facts = pod_facts(found)
    assert facts is not None
    assert facts.leaving


def test_two_pods_of_one_name_in_two_namespaces_are_two_replicas_and_the_older_keeps_the_name() -> None:
    old = pod_facts(pod(creationTimestamp="2026-01-01T00:00:00Z"))
    new = pod_facts(pod(creationTimestamp="2026-01-02T00:00:00Z", namespace="other"))
    assert old is not None
    assert new is not None
    assert replica_names([new, old]) == {"p": old, "other.p": new}
