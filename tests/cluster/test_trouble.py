"""What goes wrong in clusters, and what the operator says and does about it."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.cluster.fleet import ArtifactServer, Fleet, OperatorProcess
from tests.cluster.lab import SYSTEM, Cluster, eventually

pytestmark = pytest.mark.slow


def test_a_base_model_deleted_under_its_adapters_takes_its_pods_and_leaves_the_adapters_waiting(fleet: Fleet) -> None:
    fleet.apply(fleet.base(), fleet.adapter("one"))
    fleet.until_ready("one")
    fleet.cluster.kubectl("delete", "basemodel", "tiny", "-n", fleet.name, "--timeout=10s")
    eventually("its pods are gone", lambda: not fleet.cluster.list("Pod", fleet.name), 60)

    def told() -> bool:
        return fleet.cluster.condition("LoRAAdapter", fleet.name, "one", "Accepted")[1] == "BaseModelNotFound"

    eventually("the adapter says why", told, 20)
    fleet.apply(fleet.base())
    fleet.until_ready("one")


def test_a_namespace_deleted_with_everything_in_it_goes(fleet: Fleet) -> None:
    """[AC-06]"""
    fleet.apply(fleet.base(), fleet.adapter("one"), *fleet.tenant())
    fleet.until_ready("one")
    fleet.cluster.kubectl("delete", "namespace", fleet.name, "--timeout=90s")
    eventually("gateways forget it", lambda: not fleet.document(), 20)


def test_adapters_whose_pods_are_all_gone_and_whose_operator_is_dead_are_deleted_at_once(fleet: Fleet) -> None:
    """[AC-06]"""
    fleet.apply(fleet.base(), fleet.adapter("one"))
    fleet.until_ready("one")
    fleet.operator.stop(signal.SIGKILL)
    begun = time.monotonic()
    fleet.cluster.kubectl("delete", "loraadapter", "one", "-n", fleet.name, "--timeout=10s")
    assert time.monotonic() - begun < 10


def test_a_second_operator_waits_and_takes_over_within_fifteen_seconds(
    fleet: Fleet, cluster: Cluster, artifacts: ArtifactServer, tmp_path: Path
) -> None:
    """[AC-29]"""
    fleet.apply(fleet.base(), fleet.adapter("one"))
    fleet.until_ready("one")
    second = OperatorProcess(cluster, artifacts, tmp_path / "second.log", "operator-1")
    second.start()

    def holder() -> str:
        lease = cluster.get("Lease", SYSTEM, "lorafleet-operator")
        return str(lease["spec"]["holderIdentity"]) if lease else ""

    try:
        eventually("the second one is up", lambda: "operator starts" in second.log(), 30)
        time.sleep(12)  # longer than the Lease
        assert holder().startswith("operator-0")
        fleet.operator.stop(signal.SIGKILL)
        eventually("the second one acts", lambda: holder().startswith("operator-1"), 15)
        fleet.apply(fleet.adapter("two"))
        fleet.until_ready("two")
    finally:
        second.stop()


def test_a_tenant_without_its_secret_says_so_until_it_is_there(fleet: Fleet) -> None:
    secret, tenant = fleet.tenant()
    fleet.apply(fleet.base(), tenant)

    def accepted() -> tuple[str, str]:
        return fleet.cluster.condition("Tenant", "", fleet.name, "Accepted")[:2]

    eventually("it is refused", lambda: accepted() == ("False", "KeyMissing"), 30)
    fleet.apply(secret)
    eventually("it is accepted", lambda: accepted() == ("True", "Accepted"), 45)


def test_a_model_that_does_not_load_is_told_on_the_base_model(fleet: Fleet) -> None:
    fleet.apply(fleet.base(source={"uri": "file:/no/such/model"}))

    def told() -> str:
        return fleet.cluster.condition("BaseModel", fleet.name, "tiny", "WorkloadReady")[1]

    eventually("it says that its replica fails", lambda: told() == "ReplicaFailed", 60)


def test_what_someone_else_changed_in_a_workload_is_put_right(fleet: Fleet) -> None:
    fleet.apply(fleet.base())
    eventually("a pod serves", lambda: fleet.ready("tiny", "BaseModel"), 60)
    fleet.cluster.kubectl("scale", "deployment/tiny-runtime", "--replicas=3", "-n", fleet.name)

    def replicas() -> int:
        found = fleet.cluster.get("Deployment", fleet.name, "tiny-runtime")
        return int(found["spec"]["replicas"]) if found else -1

    eventually("it is one again", lambda: replicas() == 1, 30)
