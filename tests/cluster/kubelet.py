"""A kubelet for tests: pods of one node become runtime processes, each at a loopback address of its own.

Real are the API server, the controllers that make pods and the runtimes; containers are processes here. Probes,
readiness gates, restarts, preStop, grace periods and deletion follow what a kubelet does.
"""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from tests.cluster.lab import Cluster

NODE = "lab-node"
BACKOFF_SECONDS = 1.0


@dataclass
class Running:
    """One pod's container."""

    pod: dict[str, Any]
    ip: str
    log: Path
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    started: str = ""
    exit_code: int | None = None
    again_at: float = 0.0
    kill_at: float | None = None
    term_at: float | None = None
    reported: Any = None
    environment: dict[str, str] = field(default_factory=dict)


class TestKubelet:
    """Runs in a thread of its own until `stop`. `paused` pods' processes are frozen, for unreachable nodes."""

    __test__ = False

    def __init__(self, cluster: Cluster, folder: Path, environment: dict[str, str] | None = None) -> None:
        self._cluster = cluster
        self._folder = folder
        self._environment = environment or {}
        self._pods: dict[str, Running] = {}
        self._next = 1
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kubelet", daemon=True)
        self._beat = 0.0
        self.errors: list[str] = []

    def start(self) -> None:
        self._register()
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(30)
        for running in self._pods.values():
            if running.process is not None and running.process.poll() is None:
                running.process.kill()
                running.process.wait()

    def kill(self, name: str) -> None:
        """`kill -9` of a container's process; its pod stays, and the container starts again."""
        running = next(r for r in self._pods.values() if r.pod["metadata"]["name"] == name)
        assert running.process is not None
        running.process.kill()

    def address(self, name: str) -> str:
        return next(r.ip for r in self._pods.values() if r.pod["metadata"]["name"] == name)

    def logs(self) -> str:
        return "\n".join(f"== {r.pod['metadata']['name']}\n{r.log.read_text()[-4000:]}" for r in self._pods.values())

    def _register(self) -> None:
        capacity = {"cpu": "64", "memory": "256Gi", "pods": "110", "nvidia.com/gpu": "8"}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": _now()}
        node = {
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}},
        }  # fmt: skip
        response = self._cluster.api.post("/api/v1/nodes", json=node)
        assert response.status_code in (201, 409), response.text
        status = {"status": {"capacity": capacity, "allocatable": capacity, "conditions": [ready]}}
        headers = {"Content-Type": "application/merge-patch+json"}
        self._cluster.api.patch(f"/api/v1/nodes/{NODE}/status", json=status, headers=headers).raise_for_status()
        self._beat = time.monotonic()

    def _run(self) -> None:
        while not self._stopped.wait(0.1):
            try:
                if time.monotonic() - self._beat > 10:
                    self._register()
                self._round()
            except (httpx.HTTPError, AssertionError) as error:
                self.errors.append(repr(error))

    def _round(self) -> None:
        response = self._cluster.api.get("/api/v1/pods", params={"fieldSelector": f"spec.nodeName={NODE}"})
        response.raise_for_status()
        listed = {pod["metadata"]["uid"]: pod for pod in response.json()["items"]}
        for uid in [uid for uid in self._pods if uid not in listed]:
            self._end(self._pods.pop(uid))
        for uid, pod in listed.items():
            running = self._pods.get(uid)
            if running is None:
                running = self._pods[uid] = self._admit(pod)
            running.pod = pod
            self._step(running)

    def _admit(self, pod: dict[str, Any]) -> Running:
        self._next += 1
        name = pod["metadata"]["name"]
        return Running(pod, f"127.8.{self._next // 250}.{self._next % 250 + 1}", self._folder / f"{name}.log")

    def _step(self, running: Running) -> None:
        deleted = running.pod["metadata"].get("deletionTimestamp")
        process = running.process
        if process is not None and process.poll() is not None:
            running.exit_code, running.process = process.returncode, None
            if not deleted:
                running.restarts += 1
                running.again_at = time.monotonic() + BACKOFF_SECONDS
        if deleted:
            self._leave(running)
        elif running.process is None and time.monotonic() >= running.again_at:
            self._start(running)
        with contextlib.suppress(httpx.HTTPStatusError):  # deleted meanwhile
            self._report(running)

    def _start(self, running: Running) -> None:
        container = running.pod["spec"]["containers"][0]
        environment = {item["name"]: item.get("value", "") for item in container.get("env", ())}
        for source in container.get("envFrom", ()):
            secret = self._cluster.get("Secret", running.pod["metadata"]["namespace"], source["secretRef"]["name"])
            if secret is None:
                return  # CreateContainerConfigError: tried again
            environment |= {k: base64.b64decode(v).decode() for k, v in (secret.get("data") or {}).items()}
        argv = [*(container.get("command") or [sys.executable, "-m", "lorafleet_runtime"]), *container["args"]]
        argv[argv.index("--host") + 1] = running.ip
        environment["XDG_CACHE_HOME"] = str(self._folder / "cache" / running.pod["metadata"]["name"])
        with running.log.open("ab") as sink:
            running.process = subprocess.Popen(
                argv, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL,
                env={**os.environ, **self._environment, **environment},
            )  # fmt: skip
        running.started = _now()

    def _leave(self, running: Running) -> None:
        metadata = running.pod["metadata"]
        grace = metadata.get("deletionGracePeriodSeconds") or 0
        now = time.monotonic()
        if running.term_at is None:
            hook = (running.pod["spec"]["containers"][0].get("lifecycle") or {}).get("preStop") or {}
            pause = min((hook.get("sleep") or {}).get("seconds", 0), grace)
            running.term_at, running.kill_at = now + pause, now + grace
        process = running.process
        if process is None:
            self._cluster.delete("Pod", metadata["namespace"], metadata["name"], grace=0)
        elif running.kill_at is not None and now >= running.kill_at:
            process.kill()
        elif now >= running.term_at:
            process.send_signal(signal.SIGTERM)
            running.term_at = float("inf")

    def _end(self, running: Running) -> None:
        if running.process is not None:
            running.process.kill()
            running.process.wait()

    def _report(self, running: Running) -> None:
        pod, alive = running.pod, running.process is not None
        container = pod["spec"]["containers"][0]
        ready = alive and _answers(running.ip, "/ready")
        gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or ()]
        known = {c["type"]: c for c in (pod.get("status") or {}).get("conditions") or ()}
        open_gates = all(known.get(gate, {}).get("status") == "True" for gate in gates)
        state = (
            {"running": {"startedAt": running.started}} if alive
            else {"waiting": {"reason": "CrashLoopBackOff" if running.restarts else "ContainerCreating"}}
        )  # fmt: skip
        last = {} if running.exit_code is None else {"terminated": {"exitCode": running.exit_code, "reason": "Error"}}
        facts = {
            "Initialized": True, "PodScheduled": True, "ContainersReady": ready, "Ready": ready and open_gates,
        }  # fmt: skip
        key = (state, last, facts, running.restarts)
        if key == running.reported:
            return
        conditions = [
            {"type": name, "status": str(value), "lastTransitionTime": _now()} for name, value in facts.items()
        ]
        status = {
            "phase": "Running" if alive or running.restarts else "Pending",
            "podIP": running.ip, "podIPs": [{"ip": running.ip}], "hostIP": "127.0.0.1", "conditions": conditions,
            "containerStatuses": [
                {"name": container["name"], "image": container["image"], "imageID": "", "ready": ready,
                 "started": alive, "restartCount": running.restarts, "state": state, "lastState": last}
            ],
        }  # fmt: skip
        where = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}/status"
        headers = {"Content-Type": "application/strategic-merge-patch+json"}
        self._cluster.api.patch(where, json={"status": status}, headers=headers).raise_for_status()
        running.reported = key


def _answers(ip: str, path: str) -> bool:
    try:
        return httpx.get(f"http://{ip}:8000{path}", timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
