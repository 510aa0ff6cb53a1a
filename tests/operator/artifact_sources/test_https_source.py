"""https:// sources: what a server says, and what it fails to say."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from lorafleet_operator.artifact_sources.artifact_finder import ArtifactFinder, remote_sources
from lorafleet_operator.artifact_sources.web_client import WebClient
from lorafleet_operator.core.objects import Unresolved
from tests.operator.artifact_sources.kit import (
    BASE_CONTENT,
    BASE_EXTRA,
    CONTENT,
    Secrets,
    adapter,
    always_anew,
    artifact,
    base,
    base_artifact,
    described,
    refused,
    says,
)

ONE = adapter("https://files/one/?sig=s3cret")


class Server:
    def __init__(self) -> None:
        self.files = {f"/one/{name}": content for name, content in CONTENT.items()}
        self.calls: Counter[str] = Counter()
        self.tagged = True
        self.status = 0
        self.cookies: list[str] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.calls[request.method] += 1
        self.cookies.append(request.headers.get("Cookie", ""))
        content = self.files.get(request.url.path)
        if self.status or content is None:
            return httpx.Response(self.status or 404)
        headers = {"Set-Cookie": "session=of-someone"}
        if self.tagged:
            headers["ETag"] = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return httpx.Response(200, headers=headers, content=b"" if request.method == "HEAD" else content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    always_anew(monkeypatch)
    return Server()


@pytest.fixture
def sources(server: Server) -> Iterator[ArtifactFinder]:
    with WebClient(httpx.MockTransport(server.answer)) as web:
        yield ArtifactFinder(remote_sources(web), Secrets().get)


def test_an_artifact_has_the_digests_and_sizes_of_its_files_and_is_linked_as_it_is(sources: ArtifactFinder) -> None:
    found = artifact(sources, ONE)
    assert says(found) == described()
    assert found.files[0].url == "https://files/one/adapter_config.json?sig=s3cret"
    assert sources.link(ONE.source, found) == found


def test_an_unchanged_file_is_not_read_again_and_a_changed_one_is_a_new_revision(
    sources: ArtifactFinder, server: Server
) -> None:
    first = artifact(sources, ONE)
    assert artifact(sources, ONE) == first
    assert server.calls["GET"] == 2
    server.files["/one/adapter_model.safetensors"] = b"trained longer"
    assert artifact(sources, ONE) != first
    assert server.calls["GET"] == 3


def test_a_server_without_etags_is_read_every_time(sources: ArtifactFinder, server: Server) -> None:
    server.tagged = False
    assert artifact(sources, ONE) == artifact(sources, ONE)
    assert server.calls["GET"] == 4


def test_no_cookie_of_one_request_goes_into_another(sources: ArtifactFinder, server: Server) -> None:
    artifact(sources, ONE)
    assert set(server.cookies) == {""}


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "NotFound"), (403, "AccessDenied"), (429, "RateLimited"), (500, "Unreachable")]
)
def test_what_a_server_answers_is_told_without_the_query(
    sources: ArtifactFinder, server: Server, status: int, reason: str
) -> None:
    server.status = status
    found = refused(sources, ONE)
    assert found.reason == reason
    assert "https://files/one/adapter_config.json" in found.message
    assert "s3cret" not in found.message


def test_a_server_that_is_away_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    with WebClient(httpx.MockTransport(away)) as web:
        assert refused(ArtifactFinder(remote_sources(web), Secrets().get), ONE).reason == "Unreachable"


def test_what_would_be_ignored_or_would_leave_the_operator_is_refused(sources: ArtifactFinder) -> None:
    assert refused(sources, adapter("https://files/one", revision="v1")).reason == "UnsupportedSource"
    assert refused(sources, adapter("https://files/one", sha256="0" * 64)).reason == "DigestMismatch"


@pytest.mark.parametrize("sharded", [True, False])
def test_a_base_model_is_what_the_index_of_its_weights_names_or_its_one_file(
    sources: ArtifactFinder, server: Server, sharded: bool
) -> None:
    content = dict(BASE_CONTENT)
    if sharded:
        shards = {"weight_map": {"embed": "model-00001-of-00001.safetensors"}}
        content["model.safetensors.index.json"] = json.dumps(shards).encode()
    else:
        content["model.safetensors"] = content.pop("model-00001-of-00001.safetensors")
    server.files = {f"/base/{name}": body for name, body in {**content, **BASE_EXTRA}.items()}
    assert says(base_artifact(sources, base("https://files/base"))) == described(content)


def test_a_base_model_of_one_file_is_that_file(sources: ArtifactFinder, server: Server) -> None:
    server.files = {"/base/tiny.gguf": b"GGUF"}
    assert says(base_artifact(sources, base("https://files/base/tiny.gguf"))) == described({"tiny.gguf": b"GGUF"})
    found = sources.base(base("https://files/base"))
    assert isinstance(found, Unresolved)
    assert found.reason == "NotABaseModel"
