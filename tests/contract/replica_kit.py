"""A real runtime on a tiny model, as the operator starts it, and adapters for it as the operator resolves them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from lorafleet_operator.core.objects import Artifact, ArtifactFile, Source
from lorafleet_operator.digests import DigestCache
from lorafleet_operator.sources import resolve_adapter, revision_of
from lorafleet_runtime.model.tiny import TinyAdapter, random_adapter, save_adapter, save_tiny_model, tiny_config
from lorafleet_runtime.model.tiny_tokenizer import save_tiny_tokenizer

CONFIG = tiny_config("llama")
ADMIN_TOKEN, SERVING_TOKEN = "admin-token", "serving-token"
MAX_RANK = 128


@dataclass(frozen=True)
class Replica:
    """A runtime process: its two ports."""

    process: subprocess.Popen[bytes]
    url: str
    admin_url: str
    artifacts: Path

    def complete(self, **body: Any) -> httpx.Response:
        """One whole answer from the serving port."""
        headers = {"Authorization": f"Bearer {SERVING_TOKEN}"}
        return httpx.post(f"{self.url}/v1/completions", json=body, headers=headers, timeout=60, trust_env=False)


def two_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


@contextlib.contextmanager
def running(folder: Path, *more: str) -> Iterator[Replica]:
    """A replica whose pool has 128 pages of 8 KiB, from Ready to its end; `more` is added to its command line."""
    ports = two_ports()
    model = save_tiny_tokenizer(save_tiny_model(folder / "model", CONFIG, seed=4))
    argv = [sys.executable, "-m", "lorafleet_runtime", "serve", "--model", str(model), "--served-name", "tiny"]
    argv += ["--port", str(ports[0]), "--admin-port", str(ports[1]), "--dtype", "float32", "--max-model-len", "256"]
    argv += ["--memory", "1Mi", "--max-lora-rank", str(MAX_RANK), "--exit-with-parent", *more]
    artifacts = folder / "artifacts"
    tokens = {
        "LORAFLEET_ADMIN_TOKEN": ADMIN_TOKEN, "LORAFLEET_SERVING_TOKEN": SERVING_TOKEN,
        "LORAFLEET_ARTIFACTS": str(artifacts),
    }  # fmt: skip
    log = folder / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=sink, stderr=sink, env={**os.environ, **tokens})
    serving, admin = (f"http://127.0.0.1:{port}" for port in ports)
    replica = Replica(process, serving, admin, artifacts)
    try:
        wait_until_ready(replica, log)
        yield replica
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def wait_until_ready(replica: Replica, log: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        assert replica.process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            if httpx.get(f"{replica.url}/ready", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.05)


def saved(folder: Path, adapter: TinyAdapter | None = None, **options: Any) -> Artifact:
    """An adapter in `folder`, as the operator resolves it; options as `random_adapter`'s."""
    save_adapter(folder, adapter or random_adapter(CONFIG, **options))
    found = resolve_adapter(Source(f"file:{folder}"), DigestCache())
    assert isinstance(found, Artifact), found
    return found


def with_digest(artifact: Artifact, name: str, sha256: str) -> Artifact:
    """The artifact with another digest announced for one file; its revision follows."""
    files = tuple(
        ArtifactFile(file.name, file.url, sha256 if file.name == name else file.sha256, file.size)
        for file in artifact.files
    )
    return Artifact(revision_of(files), files)
