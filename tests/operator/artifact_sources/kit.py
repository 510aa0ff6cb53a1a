"""Adapters and Secrets for tests of sources, and what a runtime does with a link."""

from __future__ import annotations

import contextlib
import hashlib
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lorafleet_operator.artifact_sources import artifact_finder
from lorafleet_operator.artifact_sources.artifact_finder import ArtifactFinder
from lorafleet_operator.artifact_sources.hf_source import HfSource
from lorafleet_operator.artifact_sources.https_source import HttpsSource
from lorafleet_operator.artifact_sources.oci_source import OciSource
from lorafleet_operator.artifact_sources.s3_source import S3Source
from lorafleet_operator.core.objects import Adapter, Artifact, BaseModel, Ref, Secret, SecretKeyRef, Source, Unresolved
from lorafleet_runtime.frontend.artifact_files import ArtifactFile
from lorafleet_runtime.frontend.artifacts import ArtifactStore

CONTENT = {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": b"weights " * 20000}
SECRET = SecretKeyRef("acme", "login", "token")


def adapter(uri: str, *, secret: bool = False, **source: Any) -> Adapter:
    found = Source(uri, secret=SECRET if secret else None, **source)
    return Adapter(Ref("acme", "one"), Ref("models", "tiny"), "one", found)


def ports(count: int) -> list[int]:
    """Free ones on loopback, as the system gives them."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


BASE_CONTENT = {"config.json": b"{}", "tokenizer.json": b"{}", "model-00001-of-00001.safetensors": b"base " * 9000}
BASE_EXTRA = {"README.md": b"x", "consolidated.safetensors": b"the same again", "model.onnx": b"x"}
"""What lies beside a base model and is none of it."""


def base(uri: str, *, secret: bool = False) -> BaseModel:
    return BaseModel(Ref("models", "tiny"), "tiny", Source(uri, secret=SECRET if secret else None))


def base_artifact(sources: ArtifactFinder, wanted: BaseModel) -> Artifact:
    found = sources.base(wanted)
    assert isinstance(found, Artifact), found
    return found


class Secrets(dict[Ref, Secret | Unresolved]):
    """What `secretRef` finds; the one that `adapter(secret=True)` names is set with `hold`."""

    def hold(self, values: Mapping[str, str]) -> None:
        ref = Ref(SECRET.namespace, SECRET.name)
        self[ref] = Secret(ref, {name: value.encode() for name, value in values.items()})


def always_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question asks the server."""
    monkeypatch.setattr(artifact_finder, "FAILED_SECONDS", 0.0)
    monkeypatch.setattr(artifact_finder, "SLOW_FAILURE", 0.0)
    for source in (HttpsSource, S3Source, OciSource, HfSource):
        monkeypatch.setattr(source, "fresh_seconds", 0.0)


def artifact(sources: ArtifactFinder, wanted: Adapter) -> Artifact:
    found = sources.adapter(wanted)
    assert isinstance(found, Artifact), found
    return found


def refused(sources: ArtifactFinder, wanted: Adapter) -> Unresolved:
    found = sources.adapter(wanted)
    assert isinstance(found, Unresolved), found
    return found


def described(content: Mapping[str, bytes] = CONTENT) -> list[tuple[str, int, str]]:
    """What an artifact of this content says: (name, size, SHA-256) by name."""
    return [(name, len(body), hashlib.sha256(body).hexdigest()) for name, body in sorted(content.items())]


def says(found: Artifact) -> list[tuple[str, int, str]]:
    return sorted((file.name, file.size, file.sha256) for file in found.files)


async def fetched(linked: Artifact, folder: Path) -> dict[str, bytes]:
    """What a runtime has in the end that was sent this artifact: its own code fetches and verifies it."""
    files = [ArtifactFile(f.name, f.url, f.sha256, f.size, f.authorization) for f in linked.files]
    got = await ArtifactStore(folder).fetch(linked.revision, files)
    return {path.name: path.read_bytes() for path in got.iterdir()}
