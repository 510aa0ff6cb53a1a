"""Sources for pods: what a server says, and what it fails to say."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

import httpx
import pytest

from lorafleet_operator.core.objects import Adapter, Artifact, BaseModel, Ref, SecretKeyRef, Source, Unresolved
from lorafleet_operator.kube import remote_sources
from lorafleet_operator.kube.remote_sources import RemoteSources, declared_base

FILES = {"/one/adapter_config.json": b"{}", "/one/adapter_model.safetensors": b"weights"}
ADAPTER = Adapter(Ref("acme", "one"), Ref("models", "tiny"), "one", Source("https://files/one"))


class Server:
    def __init__(self) -> None:
        self.files = dict(FILES)
        self.calls: Counter[str] = Counter()

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.calls[request.method] += 1
        content = self.files.get(request.url.path)
        if content is None:
            return httpx.Response(404)
        headers = {"ETag": hashlib.md5(content, usedforsecurity=False).hexdigest()}
        return httpx.Response(200, headers=headers, content=b"" if request.method == "HEAD" else content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setattr(remote_sources, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(remote_sources, "FAILED_SECONDS", 0.0)
    return Server()


def sources(server: Server) -> RemoteSources:
    return RemoteSources(httpx.MockTransport(server.answer))


def test_an_artifact_has_the_digests_and_sizes_of_its_files(server: Server) -> None:
    found = sources(server).adapter(ADAPTER)
    assert isinstance(found, Artifact)
    assert [(f.name, f.size, f.sha256) for f in found.files] == [
        (path.rsplit("/", 1)[1], len(content), hashlib.sha256(content).hexdigest()) for path, content in FILES.items()
    ]


def test_an_unchanged_file_is_not_read_again_and_a_changed_one_is_a_new_revision(server: Server) -> None:
    remote = sources(server)
    first = remote.adapter(ADAPTER)
    assert server.calls["GET"] == 2
    assert remote.adapter(ADAPTER) == first
    assert server.calls["GET"] == 2
    server.files["/one/adapter_model.safetensors"] = b"trained longer"
    assert remote.adapter(ADAPTER) != first
    assert server.calls["GET"] == 3


def test_a_missing_file_is_named(server: Server) -> None:
    del server.files["/one/adapter_model.safetensors"]
    found = sources(server).adapter(ADAPTER)
    assert isinstance(found, Unresolved)
    assert (found.reason, "adapter_model.safetensors" in found.message) == ("NotFound", True)


def test_a_server_that_is_away_is_unreachable() -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    found = RemoteSources(httpx.MockTransport(away)).adapter(ADAPTER)
    assert isinstance(found, Unresolved)
    assert found.reason == "Unreachable"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (Source("https://files/one", sha256="sha256:" + "0" * 64), "DigestMismatch"),
        (Source("file:adapters/one"), "UnsupportedSource"),
        (Source("s3://bucket/one"), "UnsupportedSource"),
        (Source("https://files/one", secret=SecretKeyRef("acme", "s", "k")), "UnsupportedSource"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_a_reason(server: Server, source: Source, reason: str) -> None:
    found = sources(server).adapter(replace(ADAPTER, source=source))
    assert isinstance(found, Unresolved)
    assert found.reason == reason


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("https://files/base", "UnsupportedSource"),
        ("pvc://weights/base", "VolumeNotDeclared"),
        ("package://w/m.gguf", ""),
    ],
)
def test_a_base_model_is_read_from_a_declared_volume_or_the_image(uri: str, reason: str) -> None:
    found = declared_base(BaseModel(Ref("models", "tiny"), "tiny", Source(uri)))
    assert found.reason == reason if isinstance(found, Unresolved) else reason == ""
