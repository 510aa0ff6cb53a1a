"""What operators of clusters get wrong, or find wrong: old definitions, wrong clocks, sources that are away, keys."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import artifact_server, lab, skewed_clock
from tests.cluster.fleet import ArtifactServer, Fleet, OperatorProcess
from tests.cluster.kubelet import TestKubelet
from tests.cluster.lab import SYSTEM, Cluster, eventually

pytestmark = pytest.mark.slow

HOUR = 3600.0
Take = Callable[[dict[str, Any]], object]


@pytest.fixture
def older(cluster: Cluster) -> Iterator[Callable[[str, Take], None]]:
    """Put an earlier form of a definition into the cluster: `take` removes what it did not have yet."""

    def install(name: str, take: Take) -> None:
        definition = yaml.safe_load((lab.CRDS / f"{name}.yaml").read_text())
        (version,) = definition["spec"]["versions"]
        take(version["schema"]["openAPIV3Schema"]["properties"])
        cluster.kubectl("replace", "-f", "-", stdin=yaml.safe_dump(definition))
        eventually("it is in force", lambda: not knows_pinned(cluster), 30)

    yield install
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(lab.CRDS))
    eventually("this release's is in force again", lambda: knows_pinned(cluster), 30)


def knows_pinned(cluster: Cluster) -> bool:
    return "pinned" in cluster.kubectl("explain", "loraadapters.spec")


def test_with_an_older_definition_the_operator_says_what_it_lacks_and_goes_on(
    older: Callable[[str, Take], None], request: pytest.FixtureRequest
) -> None:
    def take(schema: dict[str, Any]) -> None:
        del schema["spec"]["properties"]["pinned"]
        del schema["status"]["properties"]["shortRevision"]
        del schema["status"]["properties"]["placements"]["items"]["properties"]["since"]

    older("loraadapter", take)
    fleet: Fleet = request.getfixturevalue("fleet")  # the operator starts now
    fleet.apply(fleet.base(), fleet.adapter("one"))
    fleet.until_ready("one")
    status, said = fleet.status("one"), fleet.operator.log()

    assert status["ready"] == "1/1"
    assert "shortRevision" not in status
    for path in (".spec.pinned", ".status.shortRevision", ".status.placements[].since"):
        assert said.count(f'"{path}"') == 1, said
    assert "loraadapters.lorafleet.dev" in said
    assert "helm upgrade with crds.install, or kubectl apply --server-side -f crds/" in said


def test_a_lease_and_conditions_written_by_another_clock_move_nobody(
    cluster: Cluster, artifacts: ArtifactServer, model: Path, tmp_path: Path
) -> None:
    """One operator's clock is an hour behind, the runtimes' an hour ahead, the other operator's right."""
    path = os.environ.get("PYTHONPATH", "")
    behind = skewed_clock.environment(tmp_path / "behind", -HOUR, path)
    ahead = skewed_clock.environment(tmp_path / "ahead", HOUR, path)
    kubelet = TestKubelet(cluster, tmp_path, {"SSL_CERT_FILE": str(artifacts.certificate), **ahead})
    first = OperatorProcess(cluster, artifacts, tmp_path / "first.log", "operator-0", **behind)
    second = OperatorProcess(cluster, artifacts, tmp_path / "second.log", "operator-1")
    fleet = Fleet(cluster, kubelet, first, artifacts, model)

    def lease() -> dict[str, Any]:
        return dict((cluster.get("Lease", SYSTEM, "lorafleet-operator") or {"spec": {}})["spec"])

    kubelet.start()
    first.start()
    fleet.open()
    try:
        fleet.apply(fleet.base(), fleet.adapter("one"))
        fleet.until_ready("one")
        told = fleet.status("one")["conditions"][0]["lastTransitionTime"]
        assert told < time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - HOUR / 2))
        second.start()
        eventually("the second one is up", lambda: "operator starts" in second.log(), 30)
        time.sleep(12)  # longer than the Lease
        assert lease()["holderIdentity"].startswith("operator-0")
        first.stop(signal.SIGKILL)
        eventually("the second one acts", lambda: lease()["holderIdentity"].startswith("operator-1"), 15)
        fleet.apply(fleet.adapter("two"))
        fleet.until_ready("two")
        assert fleet.status("one")["conditions"][0]["lastTransitionTime"] == told
    finally:
        fleet.close()
        first.stop()
        second.stop()
        kubelet.stop()


def test_a_source_that_is_away_is_named_and_its_adapter_comes_when_it_is_back(fleet: Fleet) -> None:
    port = lab.free_ports(1)
    url = f"https://localhost:{port}/away"
    fleet.apply(fleet.base(), fleet.adapter("here"), fleet.adapter("away", url))
    fleet.until_ready("here")

    def told() -> tuple[str, str, str]:
        return fleet.cluster.condition("LoRAAdapter", fleet.name, "away", "Ready")

    eventually("it says what it cannot reach", lambda: url in told()[2], 60)
    assert told()[:2] == ("False", "Unreachable")
    fleet.artifacts.adapter("away")
    with artifact_server.serving(fleet.artifacts.folder, fleet.artifacts.certificate, fleet.artifacts.key, port):
        fleet.until_ready("away")
    assert fleet.ready("here")


def test_a_secret_that_lacks_its_key_says_which_keys_it_has_and_a_repaired_one_counts(fleet: Fleet) -> None:
    secret, tenant = fleet.tenant()
    fleet.apply(fleet.base(replicas=0), {**secret, "stringData": {"token": "sk-elsewhere"}}, tenant)

    def told() -> tuple[str, str, str]:
        return fleet.cluster.condition("Tenant", "", fleet.name, "Accepted")

    eventually("it is refused", lambda: told()[1] == "KeyMissing", 30)
    assert "has no key 'key' (it has token)" in told()[2]
    fleet.apply(secret)
    eventually("it is accepted", lambda: told()[0] == "True", 45)
    hashes = fleet.tenants()["tenants"][0]["keys"]
    fleet.apply(*fleet.tenant("sk-rotated"))

    def rotated() -> bool:
        keys = [t["keys"] for t in fleet.tenants()["tenants"] if t["name"] == fleet.name]
        return len(keys) == 1 and keys[0] != hashes

    eventually("gateways are told the new key and not the old one", rotated, 45)
    (keys,) = [t["keys"] for t in fleet.tenants()["tenants"] if t["name"] == fleet.name]
    assert len(keys) == 1


def test_an_operator_whose_base_models_need_network_policies_makes_them(
    cluster: Cluster, kubelet: TestKubelet, artifacts: ArtifactServer, model: Path, tmp_path: Path
) -> None:
    options = ("--network-policy-release", "lorafleet")
    operator = OperatorProcess(cluster, artifacts, tmp_path / "operator.log", "operator-0", *options)
    fleet = Fleet(cluster, kubelet, operator, artifacts, model)
    operator.start()
    fleet.open()
    try:
        fleet.apply(fleet.base())
        eventually("it serves", lambda: fleet.ready("tiny", "BaseModel"), 60)
        assert [p["metadata"]["name"] for p in cluster.list("NetworkPolicy", fleet.name)] == ["tiny-runtime"]
        fleet.apply(fleet.base(engine={"dtype": "float32", "maxModelLen": 64, "memory": "2Mi", "maxNumSeqs": 8}))
        eventually("a new setting reaches a new pod", lambda: "workload applied" in operator.log(), 60)
    finally:
        fleet.close()
        operator.stop()
