"""The API tier: a real API server with its controllers, a test kubelet, real runtimes on a tiny model, the operator."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lorafleet_runtime.model.tiny import save_tiny_model, tiny_config
from lorafleet_runtime.model.tiny_tokenizer import save_tiny_tokenizer
from tests.cluster import lab
from tests.cluster.fleet import ArtifactServer, Fleet, GatewayProcess, OperatorProcess
from tests.cluster.kubelet import TestKubelet
from tests.cluster.lab import SYSTEM

CRDS = Path(__file__).parents[2] / "crds"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Cluster]:
    """An API server that knows our kinds."""
    if why := lab.lacking():
        pytest.skip(why)
    with lab.running(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.kubectl("apply", "--server-side", "-f", str(CRDS))
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        cluster.kubectl("create", "namespace", SYSTEM)
        cluster.apply_chart("operator/rbac.yaml", "operator/deployment.yaml", "gateway/gateway.yaml")
        yield cluster


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactServer]:
    """An HTTPS server of a folder, with a certificate of its own."""
    folder = tmp_path_factory.mktemp("artifacts")
    certificate, key = lab.certificate(tmp_path_factory.mktemp("certificate"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield ArtifactServer(folder, f"https://localhost:{server.server_port}", certificate)
    server.shutdown()
    server.server_close()


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
    gateway.stop()


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


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_file():
            stat = path.stat()
            self.send_header("ETag", f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"')
        super().end_headers()
