"""Two hundred replicas and a thousand adapters: what serves, and what goes on serving when parts of it fail."""

from __future__ import annotations

import threading
import time

from tests.cluster.lab import eventually
from tests.cluster.scale.conftest import ADAPTERS, BASE_MODELS, REPLICAS
from tests.cluster.scale.kit import MODELS, Manifest, ScaleFleet


def holding(fleet: ScaleFleet, pod: str) -> list[int]:
    """Numbers of the adapters that a pod holds."""
    items = fleet.items("LoRAAdapter")
    return [int(i["metadata"]["name"][1:]) for i in items if pod in i["status"]["replicas"].split(",")]


def answers(fleet: ScaleFleet, number: int) -> str:
    """Which address answers for an adapter."""
    fleet.until_served(number)
    return str(fleet.complete(number).json()["choices"][0]["text"].rsplit(" ", 1)[1])


def busy_pod(fleet: ScaleFleet) -> Manifest:
    return next(pod for pod in fleet.pods() if holding(fleet, pod["metadata"]["name"]))


def puts(fleet: ScaleFleet) -> dict[str, int]:
    return {address: calls.get("PUT", 0) for address, calls in fleet.calls().items()}


def test_adapters_of_every_base_model_and_tenant_answer_from_a_pod_that_holds_them(fleet: ScaleFleet) -> None:
    addresses = {answers(fleet, number) for number in range(0, ADAPTERS, 7)}
    loads = puts(fleet)

    assert addresses <= {pod["status"]["podIP"] for pod in fleet.pods()}
    assert sum(loads.values()) == ADAPTERS, "each adapter is loaded once, though pods come one after another"


def test_statuses_stay_small_and_nothing_is_written_while_nothing_changes(fleet: ScaleFleet) -> None:
    assert max(len(str(item.get("status"))) for item in fleet.items("LoRAAdapter")) < 64 * 1024
    settled = fleet.settle()
    time.sleep(10)

    assert fleet.writes_since(settled) == {}


def test_a_runtime_that_starts_again_is_filled_again_and_no_other_pod_is_called(fleet: ScaleFleet) -> None:
    pod = busy_pod(fleet)
    address, held = pod["status"]["podIP"], holding(fleet, pod["metadata"]["name"])
    before = puts(fleet)
    fleet.restart(address)
    eventually("it is filled", lambda: puts(fleet)[address] >= before[address] + len(held), 60)
    after = puts(fleet)

    assert {a for a in after if after[a] != before.get(a)} == {address}
    assert {answers(fleet, number) for number in held} == {address}


def test_adapters_of_a_pod_that_crashes_are_served_by_others(fleet: ScaleFleet) -> None:
    pod = busy_pod(fleet)
    name, address = pod["metadata"]["name"], pod["status"]["podIP"]
    held = holding(fleet, name)
    fleet.cluster.patch("Pod", MODELS, name, {"metadata": {"labels": {"lab/crash": "true"}}})
    try:
        for number in held:
            eventually("another pod answers", lambda number=number: answers(fleet, number) != address, 60)  # type: ignore[misc]
    finally:
        fleet.cluster.patch("Pod", MODELS, name, {"metadata": {"labels": {"lab/crash": None}}})
    eventually("the base model has all its replicas again", lambda: not fleet.unready("BaseModel"), 60)


def test_adapters_of_a_lost_node_are_served_by_pods_of_others(fleet: ScaleFleet) -> None:
    node = busy_pod(fleet)["spec"]["nodeName"]
    lost = [pod["metadata"]["name"] for pod in fleet.pods() if pod["spec"].get("nodeName") == node]
    held = {number for name in lost for number in holding(fleet, name)}
    fleet.cluster.kubectl("delete", "node", node)
    fleet.cluster.kubectl("delete", "pod", "-n", MODELS, "--force", "--grace-period=0", *lost)

    for number in sorted(held)[:20]:
        fleet.until_served(number, 90)
    eventually("as many pods as before", lambda: len(fleet.pods()) == BASE_MODELS * REPLICAS, 60)


def test_a_rolling_update_with_slow_starts_fails_no_request(fleet: ScaleFleet) -> None:
    fleet.start_slowly(2.0)
    old = {pod["metadata"]["name"] for pod in fleet.pods() if pod["metadata"]["name"].startswith("base3-")}
    failures: list[str] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            answer = fleet.complete(3)
            if answer.status_code != 200:
                failures.append(f"{answer.status_code} {answer.text}")
            time.sleep(0.05)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        fleet.cluster.patch("BaseModel", MODELS, "base3", {"spec": {"engine": {"maxNumSeqs": 32}}})
        eventually("all pods are new", lambda: not old & {pod["metadata"]["name"] for pod in fleet.pods()}, 180)
    finally:
        ended.set()
        asking.join()
        fleet.start_slowly(0.0)

    assert failures == []
