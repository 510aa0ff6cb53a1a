"""InferencePools of the Gateway API inference extension: its real definition comes to a cluster that serves already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.fleet import ArtifactServer, Fleet, OperatorProcess
from tests.cluster.lab import Cluster, eventually

pytestmark = pytest.mark.slow

OPTIONS = ("--inference-pools", "--endpoint-picker", "{name}-epp")


@pytest.fixture
def operator(cluster: Cluster, artifacts: ArtifactServer, tmp_path: Path) -> Iterator[OperatorProcess]:
    operator = OperatorProcess(cluster, artifacts, tmp_path / "operator.log", "operator-0", *OPTIONS)
    operator.start()
    yield operator
    operator.stop()


def test_a_pool_appears_when_the_cluster_knows_the_kind_and_everything_serves_without_it(
    fleet: Fleet, cluster: Cluster
) -> None:
    fleet.apply(fleet.base(), fleet.adapter("one"))
    fleet.until_ready("one")

    def told() -> tuple[str, str]:
        return cluster.condition("BaseModel", fleet.name, "tiny", "GatewayIntegrated")[:2]

    eventually("the base model says that there is none", lambda: told() == ("False", "CRDNotInstalled"), 20)
    cluster.kubectl("apply", "--server-side", "-f", str(cluster.bin / "inferencepools.yaml"))
    eventually("the pool is there", lambda: told() == ("True", "PoolApplied"), 60)

    def pool() -> dict[str, object]:
        found = cluster.get("InferencePool", fleet.name, "tiny")
        return dict(found["spec"]) if found else {}

    eventually("it is applied", lambda: bool(pool()), 30)
    (pod,) = cluster.list("Pod", fleet.name)
    labels = pod["metadata"]["labels"]
    selected = pool()["selector"]["matchLabels"]  # type: ignore[index]
    assert selected.items() <= labels.items()
    assert pool()["targetPorts"] == [{"number": 8000}]
    assert pool()["endpointPickerRef"] == {
        "group": "", "kind": "Service", "name": "tiny-epp", "port": {"number": 9002}, "failureMode": "FailClose",
    }  # fmt: skip
