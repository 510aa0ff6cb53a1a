"""The API tier: a real API server with its controllers, a test kubelet, real runtimes on a tiny model, the operator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorafleet_runtime.model.tiny import save_tiny_model, tiny_config
from lorafleet_runtime.model.tiny_tokenizer import save_tiny_tokenizer
from tests.cluster import artifact_server, lab
from tests.cluster.fleet import ArtifactServer, Fleet, GatewayProcess, OperatorProcess
from tests.cluster.kubelet import TestKubelet
from tests.cluster.lab import SYSTEM


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Cluster]:
    """An API server that knows our kinds."""
    if why := lab.lacking():
        pytest.skip(why)
    with lab.running(tmp_path_factory.mktemp("cluster"), audited=True) as cluster:
        cluster.kubectl("apply", "--server-side", "-f", str(lab.CRDS))
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        cluster.kubectl("create", "namespace", SYSTEM)
        templates = ("operator/rbac.yaml", "operator/deployment.yaml", "gateway/gateway.yaml")
        cluster.apply_chart(*templates, values=lab.RIGHTS)
        yield cluster


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactServer]:
    """An HTTPS server of a folder, with a certificate of its own."""
    folder = tmp_path_factory.mktemp("artifacts")
    certificate, key = lab.certificate(tmp_path_factory.mktemp("certificate"))
    with artifact_server.serving(folder, certificate, key) as url:
        yield ArtifactServer(folder, url, certificate, key)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model on disk, where pods of the test kubelet can read it."""
    return save_tiny_tokenizer(save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", tiny_config("llama"), seed=4))


@pytest.fixture
def kubelet(cluster: lab.Cluster, artifacts: ArtifactServer, tmp_path: Path) -> Iterator[TestKubelet]:
    kubelet = TestKubelet(cluster, tmp_path, {"SSL_CERT_FILE": str(artifacts.certificate)})
    kubelet.start()
    yield kubelet
    kubelet.stop()


@pytest.fixture
def operator(cluster: lab.Cluster, artifacts: ArtifactServer, tmp_path: Path) -> Iterator[OperatorProcess]:
    operator = OperatorProcess(cluster, artifacts, tmp_path / "operator.log")
    operator.start()
    yield operator
    operator.stop()


@pytest.fixture
def gateway(cluster: lab.Cluster, tmp_path: Path) -> Iterator[GatewayProcess]:
    gateway = GatewayProcess(cluster, tmp_path / "gateway")
    gateway.start()
    yield gateway
    gateway.close()


@pytest.fixture
def fleet(
    cluster: lab.Cluster, kubelet: TestKubelet, operator: OperatorProcess, artifacts: ArtifactServer, model: Path
) -> Iterator[Fleet]:
    """One namespace of base models, one of adapters, gone with everything in them after the test."""
    fleet = Fleet(cluster, kubelet, operator, artifacts, model)
    fleet.open()
    try:
        yield fleet
    finally:
        with contextlib.suppress(AssertionError):
            fleet.close()
