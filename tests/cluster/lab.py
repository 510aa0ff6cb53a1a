"""A real Kubernetes API on loopback, for the time of the tests: built once, started in seconds, ended by pid."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml

from lorafleet_operator.kube.client import path

HERE = Path(__file__).parent
CRDS = HERE.parents[1] / "crds"
CHART = HERE.parents[1] / "charts" / "lorafleet"
BUILD_SECONDS = 1500
SYSTEM = "lorafleet-system"
RIGHTS = ("networkPolicy.enabled=true", "inferencePool.enabled=true")
"""Values with which the operator has all the rights that it may have."""
ACCOUNTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
T = TypeVar("T")
_next_port = 21443


@dataclass
class Cluster:
    """One API server: its kubeconfig, and calls of it as its administrator."""

    folder: Path
    api: httpx.Client = field(repr=False)
    bin: Path

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """What kubectl prints; with `check` a failure fails the test with kubectl's words."""
        done = subprocess.run(
            [str(self.bin / "kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments],
            input=stdin, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    def chart(self, *options: str) -> list[dict[str, Any]]:
        """The objects of the chart, as a user's `helm install lorafleet` with these options renders them."""
        command = [str(self.bin / "helm"), "template", "lorafleet", str(CHART), "-n", SYSTEM, *options]
        rendered = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        return [document for document in yaml.safe_load_all(rendered) if document]

    def apply_chart(self, *templates: str, values: Sequence[str] = ()) -> None:
        """Apply the accounts and rights of these templates, and nothing else: the programs are processes here."""
        shown = [f"--show-only=templates/{template}" for template in templates]
        rendered = self.chart(*shown, *(f"--set={value}" for value in values))
        kept = [document for document in rendered if document["kind"] in ACCOUNTS]
        self.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(kept))

    def audit(self) -> Iterator[dict[str, Any]]:
        """Every request of our ServiceAccounts so far."""
        with (self.folder / "audit.log").open() as lines:
            yield from (json.loads(line) for line in lines if line.endswith("\n"))

    def token_of(self, account: str) -> str:
        """A token of a ServiceAccount in the system namespace."""
        return self.kubectl("create", "token", account, "-n", SYSTEM, "--duration=24h").strip()

    def kubeconfig_of(self, account: str) -> Path:
        """A kubeconfig that holds the rights of that ServiceAccount and no others."""
        target = self.folder / f"{account}.kubeconfig"
        config = yaml.safe_load(self.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": self.token_of(account)}
        target.write_text(yaml.safe_dump(config))
        return target

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        """Server-side apply; what others own is taken."""
        text = "\n---\n".join(json.dumps(manifest) for manifest in manifests)
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        response = self.api.get(path(kind, namespace, name))
        if response.status_code == 404:
            return None
        response.raise_for_status()
        return dict(response.json())

    def list(self, kind: str, namespace: str = "", selector: str = "") -> list[dict[str, Any]]:
        query = {"labelSelector": selector} if selector else {}
        response = self.api.get(path(kind, namespace), params=query)
        response.raise_for_status()
        return list(response.json()["items"])

    def patch(self, kind: str, namespace: str, name: str, body: Mapping[str, Any], part: str = "") -> None:
        content = {"Content-Type": "application/merge-patch+json"}
        where = path(kind, namespace, name) + (f"/{part}" if part else "")
        self.api.patch(where, json=body, headers=content).raise_for_status()

    def delete(self, kind: str, namespace: str, name: str, grace: int | None = None) -> None:
        query = {} if grace is None else {"gracePeriodSeconds": str(grace)}
        response = self.api.delete(path(kind, namespace, name), params=query)
        if response.status_code != 404:
            response.raise_for_status()

    def condition(self, kind: str, namespace: str, name: str, wanted: str) -> tuple[str, str, str]:
        """(status, reason, message) of a condition; empty texts where there is none."""
        found = self.get(kind, namespace, name)
        for condition in ((found or {}).get("status") or {}).get("conditions") or ():
            if condition["type"] == wanted:
                return condition["status"], condition["reason"], condition.get("message", "")
        return "", "", ""


def build(*tiers: str) -> Path:
    """The folder of the binaries, built when they are not there. Another build at the same time is waited for."""
    subprocess.run([str(HERE / "build.sh"), *tiers], check=True, timeout=BUILD_SECONDS)
    script = f". {HERE}/lab.env; echo $BIN"
    return Path(subprocess.run(["bash", "-c", script], check=True, capture_output=True, text=True).stdout.strip())


def lacking() -> str:
    """Why this machine cannot run the tier, or nothing. Nothing is skipped where CI is set."""
    missing = [name for name in ("bash", "openssl", "curl") if shutil.which(name) is None]
    return f"needs {', '.join(missing)}" if missing and not os.environ.get("CI") else ""


@contextlib.contextmanager
def running(folder: Path, layer: str = "controllers", audited: bool = False) -> Iterator[Cluster]:
    """An API server with its controllers, from ready to ended. `audited`: with the log that `Cluster.audit` reads."""
    binaries = build("api", *(("controllers",) if layer != "api" else ()), *(("kwok",) if layer == "kwok" else ()))
    port = free_ports(6)
    environment = {**os.environ, "D": str(folder), "PORT": str(port)}
    if audited:
        environment["AUDIT_POLICY"] = str(HERE / "audit-policy.yaml")
    script = str(HERE / "envtest.sh")
    subprocess.run([script, "up", layer], check=True, env=environment, timeout=180, stdout=subprocess.DEVNULL)
    token = (folder / "token").read_text().strip()
    client = httpx.Client(
        base_url=f"https://127.0.0.1:{port}", verify=ca_context(folder / "pki/ca.crt"), timeout=30, trust_env=False,
        headers={"Authorization": f"Bearer {token}"},
    )  # fmt: skip
    try:
        with client:
            yield Cluster(folder, client, binaries)
    finally:
        subprocess.run([script, "down"], check=True, env=environment, timeout=60)


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate of `localhost` and its key, new in `folder`."""
    certificate, key = folder / "localhost.crt", folder / "localhost.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key),
         "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def ca_context(ca: Path) -> Any:
    import ssl

    return ssl.create_default_context(cafile=str(ca))


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports; none is given out twice, though not used yet."""
    global _next_port
    for first in range(_next_port, 29000, count):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            _next_port = first + count
            return first
    raise AssertionError("no free ports")


def eventually(what: str, check: Callable[[], T], seconds: float = 60.0) -> T:
    """The first true value of `check`; a test fails with what it was waiting for and the last value."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, f"after {seconds:g} s: {what}; last: {found!r}"
        time.sleep(0.1)
