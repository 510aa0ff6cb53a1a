"""https:// sources: what a server says, and what it fails to say."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lorafleet_operator.artifact_sources.artifact_finder import ArtifactFinder, remote_sources
from lorafleet_operator.artifact_sources.web_client import WebClient
from lorafleet_operator.core.objects import Adapter, Unresolved
from tests.cluster import lab
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

ONE = "/one/?sig=s3cret"


class Server:
    """A web server on loopback, with a certificate of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files = {f"/one/{name}": content for name, content in CONTENT.items()}
        self.calls: Counter[str] = Counter()
        self.connections = 0
        self.tagged = True
        self.status = 0
        self.cookies: list[str] = []


def handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            server.connections += 1

        def do_GET(self) -> None:
            server.calls[self.command] += 1
            server.cookies.append(self.headers.get("Cookie", ""))
            content = server.files.get(urlsplit(self.path).path)
            if server.status or content is None:
                content = b"no"
                self.send_response(server.status or 404)
            else:
                self.send_response(200)
                self.send_header("Set-Cookie", "session=of-someone")
                if server.tagged:
                    self.send_header("ETag", hashlib.md5(content, usedforsecurity=False).hexdigest())
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    return Handler


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return lab.certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, certificate: tuple[Path, Path]) -> Iterator[Server]:
    always_anew(monkeypatch)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    made = Server("")
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler(made))
    listening.daemon_threads = True
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    made.url = f"https://localhost:{listening.server_port}"
    threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    listening.shutdown()
    listening.server_close()


@pytest.fixture
def one(server: Server) -> Adapter:
    return adapter(f"{server.url}{ONE}")


@pytest.fixture
def sources(server: Server) -> Iterator[ArtifactFinder]:
    with WebClient() as web:
        yield ArtifactFinder(remote_sources(web), Secrets().get)


def test_an_artifact_has_the_digests_and_sizes_of_its_files_and_is_linked_as_it_is(
    sources: ArtifactFinder, server: Server, one: Adapter
) -> None:
    found = artifact(sources, one)
    assert says(found) == described()
    assert found.files[0].url == f"{server.url}/one/adapter_config.json?sig=s3cret"
    assert sources.link(one.source, found) == found


def test_an_unchanged_file_is_not_read_again_and_a_changed_one_is_a_new_revision(
    sources: ArtifactFinder, server: Server, one: Adapter
) -> None:
    first = artifact(sources, one)
    assert artifact(sources, one) == first
    assert server.calls["GET"] == 2
    server.files["/one/adapter_model.safetensors"] = b"trained longer"
    assert artifact(sources, one) != first
    assert server.calls["GET"] == 3


def test_a_server_without_etags_is_read_every_time(sources: ArtifactFinder, server: Server, one: Adapter) -> None:
    server.tagged = False
    assert artifact(sources, one) == artifact(sources, one)
    assert server.calls["GET"] == 4


def test_all_looks_go_through_one_connection(sources: ArtifactFinder, server: Server, one: Adapter) -> None:
    for _ in range(5):
        artifact(sources, one)
    assert server.calls["HEAD"] == 8
    assert server.connections == 1


def test_no_cookie_of_one_request_goes_into_another(sources: ArtifactFinder, server: Server, one: Adapter) -> None:
    artifact(sources, one)
    assert set(server.cookies) == {""}


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "NotFound"), (403, "AccessDenied"), (429, "RateLimited"), (500, "Unreachable")]
)
def test_what_a_server_answers_is_told_without_the_query(
    sources: ArtifactFinder, server: Server, one: Adapter, status: int, reason: str
) -> None:
    server.status = status
    found = refused(sources, one)
    assert found.reason == reason
    assert f"{server.url}/one/adapter_config.json" in found.message
    assert "s3cret" not in found.message


def test_a_server_that_is_away_is_unreachable(sources: ArtifactFinder) -> None:
    found = refused(sources, adapter("https://localhost:1/one?sig=s3cret"))
    assert found.reason == "Unreachable"
    assert (
        found.message
        == "https://localhost:1/one/adapter_config.json: NewConnectionError: [Errno 111] Connection refused"
    )


def test_a_server_that_nobody_vouches_for_is_unreachable(one: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with WebClient() as web:
        found = refused(ArtifactFinder(remote_sources(web), Secrets().get), one)
    assert found.reason == "Unreachable"
    assert "certificate verify failed" in found.message
    assert "s3cret" not in found.message


def test_a_proxy_of_the_environment_is_used_but_for_those_it_excepts(
    one: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://localhost:1")
    with WebClient() as web:
        assert "proxy" in refused(ArtifactFinder(remote_sources(web), Secrets().get), one).message.lower()
    monkeypatch.setenv("NO_PROXY", "localhost")
    with WebClient() as web:
        assert says(artifact(ArtifactFinder(remote_sources(web), Secrets().get), one)) == described()


def test_what_would_be_ignored_or_would_leave_the_operator_is_refused(sources: ArtifactFinder, server: Server) -> None:
    assert refused(sources, adapter("https://localhost:1/one", revision="v1")).reason == "UnsupportedSource"
    assert refused(sources, adapter(f"{server.url}/one", sha256="0" * 64)).reason == "DigestMismatch"


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
    assert says(base_artifact(sources, base(f"{server.url}/base"))) == described(content)


def test_a_base_model_of_one_file_is_that_file(sources: ArtifactFinder, server: Server) -> None:
    server.files = {"/base/tiny.gguf": b"GGUF"}
    assert says(base_artifact(sources, base(f"{server.url}/base/tiny.gguf"))) == described({"tiny.gguf": b"GGUF"})
    found = sources.base(base(f"{server.url}/base"))
    assert isinstance(found, Unresolved)
    assert found.reason == "NotABaseModel"
