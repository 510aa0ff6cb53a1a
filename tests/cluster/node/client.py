"""A client's pod: what it asks, and what it is told meanwhile."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.node.node import VERSION, Node

ASKING = (Path(__file__).parent / "asking.py").read_text()
NAMESPACE = "clients"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
SECURITY = {
    "runAsNonRoot": True, "runAsUser": 10002, "seccompProfile": {"type": "RuntimeDefault"},
    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
}  # fmt: skip


@dataclass
class Answer:
    """A stream, as far as a thread has read it."""

    process: subprocess.Popen[str]
    reading: threading.Thread = field(init=False)
    pieces: list[str] = field(default_factory=list)
    end: str = ""
    other: list[str] = field(default_factory=list)  # what is no piece: a traceback

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def finished(self, seconds: float = 180) -> str:
        """The whole text; fails with what the client printed when the stream broke off."""
        self.reading.join(seconds)
        assert not self.reading.is_alive(), f"after {seconds:g} s the stream still runs: {len(self.pieces)} pieces"
        with self.process:  # closes its pipes
            pass
        assert self.end == "length", f"the stream ended by {self.end!r} after {len(self.pieces)} pieces: {self.other}"
        return self.text

    def __post_init__(self) -> None:
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                said: dict[str, Any] = json.loads(line)
            except ValueError:
                self.other.append(line)
                continue
            self.pieces.append(said["text"])
            self.end = said["end"] or self.end


class Client:
    def __init__(self, node: Node, key: str = "sk-acme-demo") -> None:
        self._node = node
        self._key = key

    def start(self) -> None:
        """Make the pod, and wait until it runs."""
        container = {
            "name": "client", "image": f"lorafleet/runtime:{VERSION}", "command": ["sleep", "infinity"],
            "env": [{"name": "API_KEY", "value": self._key}], "securityContext": SECURITY,
        }  # fmt: skip
        spec = {"containers": [container], "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False}
        self._node.namespace(NAMESPACE, RESTRICTED)
        self._node.apply(
            {"apiVersion": "v1", "kind": "Pod", "spec": spec,
             "metadata": {"name": "client", "namespace": NAMESPACE, "labels": {"app": "client"}}},
        )  # fmt: skip
        self._node.ready(NAMESPACE, "app=client", 1, 60)

    def stream(self, model: str, tokens: int) -> Answer:
        """Begin a streamed answer of so many tokens."""
        return Answer(self._spawn("stream", model, str(tokens)))

    @contextlib.contextmanager
    def load(self, *models: str) -> Iterator[None]:
        """Ask without a pause until the end of the block; one answer that failed fails the test."""
        process = self._spawn("load", *models)
        try:
            yield
            told, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        counts = json.loads(told.splitlines()[-1])
        print(f"\n          {counts['done']} answers meanwhile", end="")
        assert counts["failures"] == []
        assert counts["done"] > 2

    def _spawn(self, *arguments: str) -> subprocess.Popen[str]:
        pod = ("kubectl", "exec", "-i", "-n", NAMESPACE, "client", "--")
        return self._node.spawn(*pod, "python", "-c", ASKING, *arguments)
