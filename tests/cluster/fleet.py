"""What the tests of the API tier say: declare, wait, look, break."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from lorafleet_operator.kube.documents import TENANTS, unpacked
from lorafleet_runtime.model.tiny import TinyAdapter, random_adapter, save_adapter, tiny_config
from tests.cluster.kubelet import TestKubelet
from tests.cluster.lab import SYSTEM, Cluster, eventually, free_ports

CONFIG = tiny_config("llama")


@dataclass(frozen=True)
class ArtifactServer:
    folder: Path
    url: str
    certificate: Path
    key: Path = Path()

    def adapter(self, name: str, seed: int = 0, rank: int = 4) -> str:
        """Put an adapter there, in place of what had that name; its URL."""
        made: TinyAdapter = random_adapter(CONFIG, rank, ("q_proj", "v_proj"), seed)
        save_adapter(self.folder / name, made)
        return f"{self.url}/{name}"


class OperatorProcess:
    """The operator, as a pod would run it: a process that may be killed at any moment."""

    def __init__(
        self, cluster: Cluster, artifacts: ArtifactServer, log: Path, name: str = "operator-0", *arguments: str,
        **environment: str,
    ) -> None:  # fmt: skip
        self._cluster = cluster
        self._arguments = arguments
        self.log_file = log
        first = free_ports(2)
        self.metrics_port, self.health_port = first, first + 1
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(cluster.kubeconfig_of("lorafleet-operator")), "SSL_CERT_FILE": str(artifacts.certificate),
            "POD_NAME": name, "POD_NAMESPACE": SYSTEM,
            "LORAFLEET_SERVING_TOKEN": "serving-token-of-the-tests",
            "LORAFLEET_ADMIN_TOKEN": "admin-token-of-the-tests", **environment,
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [sys.executable, "-m", "lorafleet_operator", "operator", "--runtime-image", "runtime:test"]
        argv += ["--metrics-port", str(self.metrics_port), "--health-port", str(self.health_port)]
        argv += self._arguments
        with self.log_file.open("ab") as sink:
            self.process = subprocess.Popen(argv, env=self._environment, stdout=sink, stderr=sink)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)

    def log(self) -> str:
        return self.log_file.read_text()


class GatewayProcess:
    """A gateway, as a pod would run it, under its own ServiceAccount."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._folder = folder
        # One client for all calls: making one reads a hundred certificates, which is slower than what is called.
        self._http = httpx.Client(timeout=60, trust_env=False)
        self.port = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        account = folder / "account"
        account.mkdir(parents=True)
        (folder / "fleet").mkdir()
        (account / "token").write_text(cluster.token_of("lorafleet-gateway"))
        (account / "ca.crt").write_bytes((cluster.folder / "pki/ca.crt").read_bytes())
        self._environment = {
            **os.environ, "LORAFLEET_KUBE_API": str(cluster.api.base_url).rstrip("/"),
            "LORAFLEET_KUBE_ACCOUNT": str(account), "LORAFLEET_SERVING_TOKEN": "serving-token-of-the-tests",
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [sys.executable, "-m", "lorafleet_gateway", "serve", "--fleet", str(self._folder / "fleet")]
        argv += ["--cluster-namespace", SYSTEM, "--port", str(self.port)]
        with (self._folder / "log").open("ab") as sink:
            self.process = subprocess.Popen(argv, env=self._environment, stdout=sink, stderr=sink)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)

    def close(self) -> None:
        self.stop()
        self._http.close()

    def complete(self, model: str, key: str) -> httpx.Response:
        body = {"model": model, "prompt": "Hello", "max_tokens": 4}
        headers = {"Authorization": f"Bearer {key}"}
        return self._http.post(f"{self.url}/v1/completions", json=body, headers=headers)

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready", timeout=5, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def log(self) -> str:
        return (self._folder / "log").read_text()


@dataclass
class Fleet:
    cluster: Cluster
    kubelet: TestKubelet
    operator: OperatorProcess
    artifacts: ArtifactServer
    model: Path
    name: str = ""

    def open(self) -> None:
        self.name = f"t{secrets.token_hex(3)}"
        self.cluster.kubectl("create", "namespace", self.name)

    def close(self) -> None:
        for kind in ("loraadapters", "basemodels"):
            self.cluster.kubectl("delete", kind, "--all", "-n", self.name, "--wait=false")
        self.cluster.kubectl("delete", "tenants", "--all", "--wait=false")
        eventually("the pods are gone", lambda: not self.pods(), 60)
        self.cluster.kubectl("delete", "namespace", self.name, "--wait=false")

    def apply(self, *manifests: dict[str, Any]) -> None:
        self.cluster.apply(*manifests)

    def base(self, name: str = "tiny", replicas: int = 1, **spec: Any) -> dict[str, Any]:
        engine = {"dtype": "float32", "maxModelLen": 128, "maxNumSeqs": 8, "maxBatchedTokens": 64, "memory": "2Mi"}
        runtime = {"drainSeconds": 1}
        body = {
            "servedName": name, "source": {"uri": f"file:{self.model}"}, "replicas": replicas, "engine": engine,
            "lora": {"maxRank": 16}, "runtime": runtime, **spec,
        }  # fmt: skip
        return self._object("BaseModel", name, body)

    def adapter(self, name: str, url: str = "", **spec: Any) -> dict[str, Any]:
        body = {"baseModelRef": {"name": "tiny"}, "source": {"uri": url or self.artifacts.adapter(name)}, **spec}
        return self._object("LoRAAdapter", name, body)

    def tenant(self, key: str = "sk-test-key") -> list[dict[str, Any]]:
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key", "namespace": self.name},
                  "stringData": {"key": key}}  # fmt: skip
        spec = {
            "namespaces": [self.name], "models": [{"namespace": self.name, "name": "tiny"}],
            "apiKeys": [{"secretRef": {"namespace": self.name, "name": "key", "key": "key"}}],
        }  # fmt: skip
        head = {"apiVersion": "lorafleet.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": self.name}}
        return [secret, {**head, "spec": spec}]

    def pods(self) -> list[str]:
        """Names of the pods that are not leaving."""
        pods = self.cluster.list("Pod", self.name)
        return sorted(p["metadata"]["name"] for p in pods if not p["metadata"].get("deletionTimestamp"))

    def ready(self, name: str, kind: str = "LoRAAdapter") -> bool:
        return self.cluster.condition(kind, self.name, name, "Ready")[0] == "True"

    def until_ready(self, *names: str, seconds: float = 90) -> None:
        def missing() -> list[str]:
            return [name for name in names if not self.ready(name)]

        try:
            eventually(f"{names} are Ready", lambda: not missing(), seconds)
        except AssertionError as error:
            told = "\n".join(str(self.cluster.get("LoRAAdapter", self.name, n)) for n in missing()[:3])
            raise AssertionError(
                f"{error}\n{told}\n{self.operator.log()[-6000:]}\n{self.kubelet.logs()}\n{self.kubelet.errors}"
            ) from error

    def status(self, name: str, kind: str = "LoRAAdapter") -> dict[str, Any]:
        return dict((self.cluster.get(kind, self.name, name) or {}).get("status") or {})

    def placements(self, name: str) -> dict[str, str]:
        """State by replica."""
        return {p["replica"]: p["state"] for p in self.status(name).get("placements", ())}

    def document(self, base: str = "tiny") -> dict[str, Any]:
        """What gateways are told about a base model."""
        found = self.cluster.get("ConfigMap", SYSTEM, f"lorafleet-fleet-{self.name}.{base}")
        return (unpacked(found) or {}) if found else {}

    def tenants(self) -> dict[str, Any]:
        found = self.cluster.get("Secret", SYSTEM, TENANTS)
        return (unpacked(found) or {}) if found else {}

    def _object(self, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        metadata = {"name": name, "namespace": self.name}
        return {"apiVersion": "lorafleet.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
