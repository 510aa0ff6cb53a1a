"""One Kubernetes node on this machine, for the time of the tests; what it needs is made where it is missing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.lab import BUILD_SECONDS, HERE, eventually

NODE = HERE / "node"
ROOT = HERE.parents[1]
SYSTEM, MODELS = "lorafleet-system", "models"
VERSION = yaml.safe_load((ROOT / "charts/lorafleet/Chart.yaml").read_text())["appVersion"]
IMAGE_SECONDS = 900


class Node:
    """The running node, and what the tests ask of it as its administrator."""

    def __init__(self, lab: Path) -> None:
        self.lab = lab

    def run(self, *command: str, stdin: str | None = None, check: bool = True, seconds: float = 120) -> str:
        """What a command inside the node prints; with `check` a failure fails the test with the command's words."""
        done = subprocess.run(
            [str(NODE / "cluster.sh"), "in", *command],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=ROOT,
        )
        if check:
            assert done.returncode == 0, f"{' '.join(command)[:300]}: {done.stderr}\n{done.stdout}"
            return done.stdout
        return done.stdout + done.stderr

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, seconds: float = 120) -> str:
        return self.run("kubectl", *arguments, stdin=stdin, check=check, seconds=seconds)

    def spawn(self, *command: str) -> subprocess.Popen[str]:
        """A command inside the node that goes on beside the test; it ends when its standard input does."""
        return subprocess.Popen(
            [str(NODE / "cluster.sh"), "in", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        )  # fmt: skip

    def apply(self, *manifests: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    def list(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        chosen = ["-l", selector] if selector else []
        return list(json.loads(self.kubectl("get", kind, "-n", namespace, *chosen, "-o", "json"))["items"])

    def pods(self, namespace: str, selector: str = "") -> dict[str, dict[str, Any]]:
        """The pods that are not leaving, by name."""
        found = self.list("pods", namespace, selector)
        return {p["metadata"]["name"]: p for p in found if not p["metadata"].get("deletionTimestamp")}

    def ready(self, namespace: str, selector: str, count: int, seconds: float = 240) -> dict[str, dict[str, Any]]:
        """The pods of a selector, once they are so many and all Ready."""

        def found() -> dict[str, dict[str, Any]]:
            pods = self.pods(namespace, selector)
            return pods if len(pods) == count and all(is_ready(pod) for pod in pods.values()) else {}

        return eventually(f"{count} pods of {selector} are Ready", found, seconds)

    def address(self, pod: str, namespace: str = MODELS) -> str:
        return str(self.pods(namespace)[pod]["status"]["podIP"])

    def namespace(self, name: str, labels: dict[str, str] | None = None) -> None:
        """A new namespace that takes pods: it has its `default` account."""
        head = {"name": name, "labels": labels or {}}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": head})
        account = ("get", "serviceaccount", "default", "-n", name, "--ignore-not-found", "-o", "name")
        eventually(f"{name} has an account", lambda: self.kubectl(*account), 30)

    def provide(self, name: str) -> None:
        """A volume that the next claim is bound to, as no provisioner runs here. A host's folder knows no fsGroup, so
        everyone may write to it."""
        folder = self.lab / "node" / "volumes" / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        spec = {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(folder), "type": "Directory"},
        }  # fmt: skip
        self.apply({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True"


def lacking() -> str:
    """Why this machine cannot run the tier, or nothing. Nothing is skipped where CI is set."""
    if os.environ.get("CI"):
        return ""
    if os.geteuid() != 0:
        return "needs root: namespaces, mounts and a network of its own"
    if sys.version_info[:2] != (3, 11):
        return "needs Python 3.11: Debian 12's interpreter runs this environment's packages inside the pods"
    if subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
        return "needs the right to make namespaces"
    missing = subprocess.run([NODE / "packages.sh", "missing"], capture_output=True, text=True).stdout.split()
    return f"needs {', '.join(missing)}" if missing and shutil.which("apt-get") is None else ""


@contextlib.contextmanager
def running() -> Iterator[Node]:
    """A node with our images, from nothing to ended."""
    with lap("Debian packages"):
        script("packages.sh", seconds=600)
    with lap("Kubernetes' commands"):
        script("../build.sh", "api", "controllers", "node", seconds=BUILD_SECONDS)
    with lap("base image"):
        script("images.sh", "base", seconds=IMAGE_SECONDS)
    with lap("our images"):
        script("images.sh", "build", seconds=IMAGE_SECONDS)
        archives = script("images.sh", "archives", seconds=IMAGE_SECONDS).split()
    lab = Path(script("images.sh", "folder").strip())
    script("cluster.sh", "down")  # what a run that was cut off has left
    shutil.rmtree(lab / "node" / "volumes", ignore_errors=True)
    try:
        with lap("the node"):
            script("cluster.sh", "up", seconds=300)
        with lap("images given to the node"):
            script("cluster.sh", "load", *archives, seconds=300)
        yield Node(lab)
    finally:
        with lap("down"):
            script("cluster.sh", "down")


def script(name: str, *arguments: str, seconds: float = 120) -> str:
    environment = {**os.environ, "ENVIRONMENT": sysconfig.get_path("purelib")}
    done = subprocess.run(
        [str(NODE / name), *arguments], env=environment, capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, f"{name} {' '.join(arguments)}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@contextlib.contextmanager
def lap(what: str) -> Iterator[None]:
    begun = time.monotonic()
    try:
        yield
    finally:
        print(f"\n{time.monotonic() - begun:7.1f} s  {what}", end="", flush=True)
