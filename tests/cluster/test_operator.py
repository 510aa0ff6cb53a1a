"""The operator on a real API server. Numbers in brackets are acceptance cases: failures that users of others report."""

from __future__ import annotations

import signal
import time

import pytest

from tests.cluster.fleet import Fleet
from tests.cluster.lab import eventually

pytestmark = pytest.mark.slow


def test_a_base_model_an_adapter_and_a_tenant_become_a_fleet_document(fleet: Fleet) -> None:
    fleet.apply(fleet.base(), fleet.adapter("one"), *fleet.tenant())
    fleet.until_ready("one")
    assert fleet.ready("tiny", "BaseModel")
    (pod,) = fleet.pods()
    document = fleet.document()
    assert [r["state"] for r in document["replicas"]] == ["Ready"]
    assert document["replicas"][0]["url"] == f"http://{fleet.kubelet.address(pod)}:8000"
    (adapter,) = document["adapters"]
    assert (adapter["id"], adapter["state"]) == (f"{fleet.name}.one", "Ready")
    (tenant,) = fleet.tenants()["tenants"]
    assert tenant["name"] == fleet.name
    assert len(tenant["keys"]) == 1
    assert "sk-test-key" not in str(fleet.tenants())


def test_an_adapter_comes_back_after_its_pod_was_killed_without_anyone_asking(fleet: Fleet) -> None:
    """[AC-01]"""
    fleet.apply(fleet.base(), fleet.adapter("one"))
    fleet.until_ready("one")
    (pod,) = fleet.pods()
    before = fleet.status("one")["placements"][0]["uid"]
    fleet.kubelet.kill(pod)

    def again() -> bool:
        placements = fleet.status("one").get("placements") or [{}]
        return placements[0].get("state") == "Ready" and placements[0]["uid"] not in ("", before)

    eventually("the adapter is Ready on the new process", again, 90)
    assert fleet.pods() == [pod]


def test_fifty_adapters_in_one_apply_all_become_ready(fleet: Fleet) -> None:
    """[AC-07]"""
    url = fleet.artifacts.adapter("shared", rank=1)
    names = [f"a{i}" for i in range(50)]
    fleet.apply(fleet.base(), *(fleet.adapter(name, url) for name in names))
    fleet.until_ready(*names)
    deployments = fleet.cluster.list("Deployment", fleet.name)
    assert [d["metadata"]["generation"] for d in deployments] == [1]  # [AC-24]: no adapter changes a pod


def test_copies_follow_the_replicas_up_and_down(fleet: Fleet) -> None:
    """[AC-03, AC-04]"""
    fleet.apply(fleet.base(), fleet.adapter("one", copies={"min": 2, "max": 2}))
    eventually("one copy serves", lambda: fleet.status("one").get("ready") == "1/2", 90)
    assert fleet.cluster.condition("LoRAAdapter", fleet.name, "one", "Placed")[1] == "InsufficientReplicas"
    fleet.cluster.kubectl("scale", "basemodel/tiny", "--replicas=2", "-n", fleet.name)
    fleet.until_ready("one")
    eventually("both copies serve", lambda: fleet.status("one").get("ready") == "2/2", 90)
    fleet.cluster.kubectl("scale", "basemodel/tiny", "--replicas=1", "-n", fleet.name)
    eventually("one pod is left", lambda: len(fleet.pods()) == 1, 60)
    eventually("the copy that is left serves", lambda: fleet.placements("one") == {fleet.pods()[0]: "Ready"}, 60)


def test_an_adapter_that_was_unloaded_behind_the_operators_back_is_loaded_again(fleet: Fleet) -> None:
    """[AC-02]"""
    import httpx

    fleet.apply(fleet.base(), fleet.adapter("one"))
    fleet.until_ready("one")
    (pod,) = fleet.pods()
    admin = f"http://{fleet.kubelet.address(pod)}:8001/admin"
    headers = {"Authorization": "Bearer admin-token-of-the-tests"}
    epoch = str(httpx.get(f"{admin}/state", headers=headers, trust_env=False).json()["epoch"])
    url = f"{admin}/adapters/{fleet.name}.one"
    gone = httpx.delete(url, headers={**headers, "Lorafleet-Epoch": epoch}, trust_env=False)
    assert gone.status_code in (202, 204)

    def resident() -> bool:
        state = httpx.get(f"{admin}/state", headers=headers, trust_env=False).json()
        return [a["state"] for a in state["adapters"]] == ["Ready"]

    eventually("it is loaded again", resident, 30)


def test_a_deleted_adapter_is_gone_at_once_and_its_name_can_be_used_again(fleet: Fleet) -> None:
    """[AC-06]"""
    fleet.apply(fleet.base(), fleet.adapter("one"), fleet.adapter("two"))
    fleet.until_ready("one", "two")
    fleet.cluster.kubectl("delete", "loraadapter", "one", "-n", fleet.name, "--timeout=10s")
    eventually("gateways forget it", lambda: [a["name"] for a in fleet.document()["adapters"]] == ["two"], 20)
    fleet.apply(fleet.adapter("one"))
    fleet.until_ready("one")


def test_a_broken_artifact_says_so_and_recovers_by_itself_when_it_is_put_right(fleet: Fleet) -> None:
    """[AC-05, AC-16]"""
    url = fleet.artifacts.adapter("broken")
    weights = fleet.artifacts.folder / "broken" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    fleet.apply(fleet.base(), fleet.adapter("broken", url))

    def refused() -> tuple[str, str, str]:
        return fleet.cluster.condition("LoRAAdapter", fleet.name, "broken", "ArtifactVerified")

    eventually("it is refused", lambda: refused()[0] == "False", 90)
    assert refused()[1] == "InvalidAdapter"
    assert not fleet.ready("broken")
    weights.write_bytes(whole)
    fleet.until_ready("broken", seconds=150)


def test_a_new_revision_serves_while_the_old_one_does_until_it_is_there(fleet: Fleet) -> None:
    """[AC-13]"""
    fleet.apply(fleet.base(), fleet.adapter("one", fleet.artifacts.adapter("first", seed=1)))
    fleet.until_ready("one")
    before = fleet.status("one")["revision"]
    fleet.apply(fleet.adapter("one", fleet.artifacts.adapter("second", seed=2)))

    def moved() -> bool:
        status = fleet.status("one")
        placed = {p["revision"] for p in status["placements"] if p["state"] == "Ready"}
        return status["revision"] != before and placed == {status["revision"]}

    eventually("the new revision serves", moved, 30)


def test_an_operator_that_dies_is_followed_by_one_with_a_higher_epoch_that_writes_nothing_anew(fleet: Fleet) -> None:
    """[AC-08, AC-29]"""
    fleet.apply(fleet.base(), fleet.adapter("one"))
    fleet.until_ready("one")

    def version() -> str:
        found = fleet.cluster.get("LoRAAdapter", fleet.name, "one")
        assert found is not None
        return str(found["metadata"]["resourceVersion"])

    time.sleep(1)  # what is still gathered is written
    before = version()
    lease = fleet.cluster.get("Lease", "lorafleet-system", "lorafleet-operator")
    assert lease is not None
    fleet.operator.stop(signal.SIGKILL)
    fleet.apply(fleet.adapter("two"))
    fleet.operator.start()
    fleet.until_ready("two", seconds=60)
    after = fleet.cluster.get("Lease", "lorafleet-system", "lorafleet-operator")
    assert after is not None
    assert after["spec"]["leaseTransitions"] > lease["spec"]["leaseTransitions"]
    assert version() == before


def test_an_unchanged_fleet_writes_nothing_but_the_lease(fleet: Fleet) -> None:
    fleet.apply(fleet.base(), fleet.adapter("one"), *fleet.tenant())
    fleet.until_ready("one")

    def versions() -> dict[str, str]:
        kinds = ("BaseModel", "LoRAAdapter", "Deployment", "Pod", "ConfigMap", "Event")
        found = [o for kind in kinds for o in fleet.cluster.list(kind, fleet.name)]
        found += fleet.cluster.list("ConfigMap", "lorafleet-system") + fleet.cluster.list("Tenant")
        return {o["metadata"]["uid"]: o["metadata"]["resourceVersion"] for o in found}

    seen: list[dict[str, str]] = []

    def settled() -> bool:
        seen.append(versions())
        return len(seen) > 60 and all(v == seen[-1] for v in seen[-60:])

    eventually("nothing is written for a while", settled, 60)


def test_a_new_setting_reaches_a_new_pod_that_holds_the_adapters_before_the_old_one_goes(fleet: Fleet) -> None:
    fleet.apply(fleet.base(), fleet.adapter("one"))
    fleet.until_ready("one")
    (old,) = fleet.pods()
    served: list[bool] = []
    fleet.apply(fleet.base(lora={"maxRank": 8}))

    def replaced() -> bool:
        serving = [p for p in fleet.document()["adapters"][0]["placements"] if p["state"] == "Ready"]
        served.append(bool(serving))
        return old not in fleet.pods() and len(fleet.pods()) == 1

    eventually("the old pod is gone", replaced, 120)
    assert all(served)
    fleet.until_ready("one")
