"""A fleet too large for real runtimes: a real control plane, fake nodes and pods (kwok), light runtimes at the pods'
addresses, and the real operator and gateway. Runs inside a namespace without any network but loopback (netns.sh)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from lorafleet_operator.kube.client import path
from tests.cluster import lab
from tests.cluster.fleet import ArtifactServer, GatewayProcess, OperatorProcess
from tests.cluster.lab import SYSTEM, Cluster

ROOT = Path(__file__).parents[3]
INSIDE = "LORAFLEET_SCALE"
MODELS = "models"
GPUS = 8
ADMIN_TOKEN = "admin-token-of-the-tests"
API_VERSION = "lorafleet.dev/v1alpha1"
WRITES = ("APPLY", "APPLY_STATUS", "PATCH", "PATCH_STATUS", "CREATE", "UPDATE", "DELETE")
Manifest = dict[str, Any]
Calls = Mapping[tuple[str, str], float]


def inside() -> bool:
    """Is this the namespace in which the pods' addresses are local?"""
    return bool(os.environ.get(INSIDE))


def enter(*command: str) -> subprocess.CompletedProcess[bytes]:
    """Run `command` in such a namespace."""
    script = str(ROOT / "tests/cluster/netns.sh")
    return subprocess.run([script, *command], env={**os.environ, INSIDE: "1"}, cwd=ROOT, check=False)


@dataclass
class ScaleFleet:
    """`base_models` with `replicas` each; adapters are spread over them and over the tenants' namespaces, in turn."""

    cluster: Cluster
    operator: OperatorProcess
    gateway: GatewayProcess
    artifacts: ArtifactServer
    base_models: int
    replicas: int
    tenants: int

    def declare(self) -> None:
        """Base models and tenants, with their namespaces and keys."""
        names = [MODELS, *(f"t{i}" for i in range(self.tenants))]
        self.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names)
        self.create(_base_model(f"base{i}", self.replicas) for i in range(self.base_models))
        self.create(_secret(f"t{i}") for i in range(self.tenants))
        self.create(_tenant(f"t{i}", self.base_models) for i in range(self.tenants))

    def adapter(self, number: int) -> Manifest:
        """Adapter `a<number>`, of tenant and base model in turn."""
        name, tenant = f"a{number}", f"t{number % self.tenants}"
        spec = {
            "baseModelRef": {"namespace": MODELS, "name": f"base{number % self.base_models}"}, "servedName": name,
            "source": {"uri": f"{self.artifacts.url}/{name}"},
        }  # fmt: skip
        return _object("LoRAAdapter", name, spec, tenant)

    def create(self, manifests: Iterable[Manifest]) -> None:
        """Create them all, several at a time."""

        def one(manifest: Manifest) -> None:
            where = path(manifest["kind"], manifest["metadata"].get("namespace", ""))
            self.cluster.api.post(where, json=manifest).raise_for_status()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, manifests))

    def unready(self, kind: str = "LoRAAdapter") -> list[str]:
        """Names of the objects that are not Ready."""
        found = []
        for item in self.items(kind):
            conditions = {c["type"]: c["status"] for c in (item.get("status") or {}).get("conditions") or ()}
            if conditions.get("Ready") != "True":
                found.append(item["metadata"]["name"])
        return found

    def items(self, kind: str) -> list[Manifest]:
        """All objects of a kind, in pages."""
        found: list[Manifest] = []
        token = ""
        while True:
            query = {"limit": "2000", **({"continue": token} if token else {})}
            page = self.cluster.api.get(path(kind), params=query).raise_for_status().json()
            found += page["items"]
            token = page["metadata"].get("continue", "")
            if not token:
                return found

    def until_ready(self, adapters: int, seconds: float) -> float:
        """Seconds until all of so many adapters are Ready.

        Base models count theirs; the adapters are listed when all are counted, for a list of thousands takes a core
        for a second."""
        begun = time.monotonic()
        while self._counted() < adapters or self.unready():
            waited = time.monotonic() - begun
            log = self.operator.log()[-4000:] if waited > seconds else ""
            assert waited < seconds, f"after {waited:.0f} s not Ready: {self.unready()[:3]}\n{log}"
            time.sleep(0.5)
        return time.monotonic() - begun

    def _counted(self) -> int:
        counts = [(item.get("status") or {}).get("adapters", "0/0") for item in self.items("BaseModel")]
        return sum(int(count.partition("/")[0]) for count in counts)

    def complete(self, number: int) -> httpx.Response:
        """Ask adapter `a<number>` through the gateway, as its tenant."""
        return self.gateway.complete(f"a{number}", _key(f"t{number % self.tenants}"))

    def until_served(self, number: int, seconds: float = 60, pause: float = 0.02) -> float:
        """Seconds until the adapter answers through the gateway. An unknown name is a 404 at once."""
        begun = time.monotonic()
        while (answer := self.complete(number)).status_code != 200:
            assert time.monotonic() - begun < seconds, f"a{number}: {answer.status_code} {answer.text}"
            time.sleep(pause)
        return time.monotonic() - begun

    def calls(self) -> dict[str, dict[str, int]]:
        """How many loads and unloads each pod's address was asked for: {address: {"PUT": n, "DELETE": m}}."""
        return dict(_control("GET", "calls").json())

    def restart(self, address: str) -> None:
        """The runtime at a pod's address starts again, empty."""
        _control("POST", f"restart/{address}")

    def start_slowly(self, seconds: float) -> None:
        """Runtimes that start from now on take so long to load their base model."""
        _control("POST", f"start/{seconds}")

    def retrain(self, name: str) -> None:
        """Another artifact under the adapter's URL."""
        _control("POST", f"retrain/{name}")

    def pods(self) -> list[Manifest]:
        return [pod for pod in self.cluster.list("Pod", MODELS) if not pod["metadata"].get("deletionTimestamp")]

    def settle(self) -> Calls:
        """Wait until nothing but the Lease is written for five seconds; the calls until then."""
        before = self.api_calls()
        while True:
            time.sleep(5)
            if not self.writes_since(before):
                return self.api_calls()
            before = self.api_calls()

    def writes_since(self, before: Calls) -> dict[tuple[str, str], float]:
        """What the operator wrote since, {(verb, resource): writes}, but its Lease."""
        grown = {key: n - before.get(key, 0) for key, n in self.api_calls().items()}
        return {key: n for key, n in grown.items() if n and key[0] in WRITES and key[1] != "Lease"}

    def api_calls(self) -> Calls:
        """The operator's own count of its API calls: {(verb, resource): calls}."""
        return api_calls(self.operator.metrics_port)


def api_calls(port: int) -> dict[tuple[str, str], float]:
    """From an operator's metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "lorafleet_operator_api_calls_total":
                key = sample.labels["verb"], sample.labels["resource"]
                found[key] = found.get(key, 0) + sample.value
    return found


@contextlib.contextmanager
def running(folder: Path, *, base_models: int, replicas: int, tenants: int) -> Iterator[ScaleFleet]:
    """Control plane, nodes, light runtimes: all but the operator and the gateway are started."""
    assert inside(), f"run this under tests/cluster/netns.sh with {INSIDE}=1"
    certificate, key = lab.certificate(folder)
    os.environ["KWOK_CONFIG"] = str(ROOT / "tests/cluster/kwok-stages.yaml")
    with lab.running(folder / "cluster", "kwok") as cluster, _light(certificate, key):
        cluster.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        cluster.kubectl("create", "namespace", SYSTEM)
        cluster.apply_chart("operator/rbac.yaml", "operator/deployment.yaml", "gateway/gateway.yaml")
        _nodes(cluster, -(-base_models * replicas * 5 // (4 * GPUS)))  # room for a rolling update's surge
        artifacts = ArtifactServer(folder, "https://localhost:8443", certificate)
        operator = OperatorProcess(cluster, artifacts, folder / "operator.log")
        gateway = GatewayProcess(cluster, folder / "gateway")
        try:
            yield ScaleFleet(cluster, operator, gateway, artifacts, base_models, replicas, tenants)
        finally:
            operator.stop()
            gateway.close()


def _nodes(cluster: Cluster, count: int) -> None:
    capacity = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": str(GPUS)}
    for number in range(count):
        metadata = {
            "name": f"kwok-{number}", "labels": {"type": "kwok", "kubernetes.io/hostname": f"kwok-{number}"},
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        }  # fmt: skip
        status = {"capacity": capacity, "allocatable": capacity}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": status}
        cluster.api.post("/api/v1/nodes", json=node).raise_for_status()


@contextlib.contextmanager
def _light(certificate: Path, key: Path) -> Iterator[None]:
    script = str(ROOT / "tests/cluster/scale/light_runtime.py")
    argv = [sys.executable, script, "--certificate", str(certificate), "--key", str(key), "--admin-token", ADMIN_TOKEN]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


def _control(method: str, where: str) -> httpx.Response:
    return httpx.request(method, f"http://127.0.0.1:8002/{where}", trust_env=False, timeout=30).raise_for_status()


def _key(tenant: str) -> str:
    return f"sk-{tenant}-of-the-tests"


def _object(kind: str, name: str, spec: Mapping[str, Any], namespace: str = "") -> Manifest:
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": dict(spec)}


def _base_model(name: str, replicas: int) -> Manifest:
    spec = {
        "servedName": name, "source": {"uri": "file:/models/light"}, "replicas": replicas,
        "engine": {"dtype": "float32", "memory": "1Gi"}, "allowedNamespaces": {"from": "All"},
        "runtime": {"drainSeconds": 1, "resources": {"limits": {"nvidia.com/gpu": 1}}},
    }  # fmt: skip
    return _object("BaseModel", name, spec, MODELS)


def _secret(tenant: str) -> Manifest:
    metadata = {"name": "key", "namespace": tenant}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"key": _key(tenant)}}


def _tenant(name: str, base_models: int) -> Manifest:
    models = [{"namespace": MODELS, "name": f"base{i}"} for i in range(min(base_models, 4))]
    keys = [{"secretRef": {"namespace": name, "name": "key", "key": "key"}}]
    return _object("Tenant", name, {"namespaces": [name], "models": models, "apiKeys": keys})
