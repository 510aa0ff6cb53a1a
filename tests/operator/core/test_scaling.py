"""A Deployment is told fewer pods only when the plan lets them go."""

from __future__ import annotations

import pytest

from lorafleet_operator.core.actions import LoadAdapter, Plan
from lorafleet_operator.core.objects import Artifact, BaseModel, Ref, Replica, ReplicaState, Resident, Source
from lorafleet_operator.core.scaling import being_loaded, deployment_replicas, holds_its_adapters

BASE = BaseModel(Ref("models", "smol"), "smol", Source("package://w/m.gguf"), replicas=2)


def pods(count: int, state: ReplicaState = "Ready", spec_hash: str = "h") -> list[Replica]:
    return [Replica(f"{spec_hash}-{i}", BASE.ref, i, state, spec_hash) for i in range(count)]


@pytest.mark.parametrize(
    ("replicas", "stops", "told"),
    [
        ([], set(), 2),
        (pods(2), set(), 2),
        (pods(4), set(), 4),  # nothing may stop yet
        (pods(4), {"h-3"}, 3),
        (pods(4), {"h-3", "h-2"}, 2),
        (pods(3, "Draining"), set(), 2),  # those go anyway
        (pods(2, spec_hash="old") + pods(1), {"old-0"}, 2),  # a rolling update is the Deployment's own
    ],
    ids=["none yet", "as wanted", "surplus that serves", "one may go", "both may go", "leaving", "rollout"],
)
def test_how_many_pods_a_deployment_is_told(replicas: list[Replica], stops: set[str], told: int) -> None:
    assert deployment_replicas(BASE, replicas, stops, "h") == told


def resident(state: str) -> Resident:
    return Resident(Ref("acme", "one"), "sha256:1", state)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("residents", "state", "holds"),
    [
        ((), "Ready", True),
        ((resident("Ready"),), "Ready", True),
        ((resident("Failed"),), "Ready", True),
        ((resident("Loading"),), "Ready", False),
        ((), "Starting", False),
    ],
)
def test_a_pod_holds_its_adapters_when_none_is_on_its_way(
    residents: tuple[Resident, ...], state: ReplicaState, holds: bool
) -> None:
    assert holds_its_adapters(Replica("p", BASE.ref, 0, state, "h", residents=residents), ()) is holds


def test_a_pod_that_is_about_to_get_an_adapter_does_not_hold_it_yet() -> None:
    plan = Plan((LoadAdapter("p", Ref("acme", "one"), Artifact("sha256:1"), False, "one copy is wanted"),))
    assert not holds_its_adapters(Replica("p", BASE.ref, 0, "Ready", "h"), being_loaded(plan))
