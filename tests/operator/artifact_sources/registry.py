"""Real registries on loopback, over one storage: open, with passwords, and with a token server."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from lorafleet_operator.artifact_sources.oci_source import TITLE
from tests.cluster import lab
from tests.operator.artifact_sources.kit import ports

PACKAGE = "docker-registry"
USER, PASSWORD = "reader", "reader-password-of-the-tests"
HTPASSWD = "reader:$2y$04$zijB4XC7qA8kFBI3hVk5A.upQ2cIxZ.H.dDybdG6h4GT/cvStmro6\n"
START_SECONDS = 30
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = b"{}"


def lacking() -> str:
    """Why this machine cannot run one, or nothing. Where CI is set it is installed, and nothing is skipped."""
    if shutil.which(PACKAGE) is not None:
        return ""
    if not os.environ.get("CI"):
        return f"needs the Debian package {PACKAGE}"
    for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", PACKAGE]):
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    return ""


@dataclass
class Registries:
    """One storage behind three hosts. `certificate` is what a client must trust."""

    folder: Path
    certificate: Path
    key: Path
    tokens: TokenServer
    open: str = ""
    passwords: str = ""
    tokened: str = ""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def push(self, repository: str, tag: str, files: Mapping[str, bytes]) -> str:
        """Put these files there as `oras push` does; the manifest's digest."""
        described = [
            {"mediaType": "application/octet-stream", "annotations": {TITLE: name}, **self.blob(repository, content)}
            for name, content in files.items()
        ]
        return self.push_layers(repository, tag, described)

    def push_layers(self, repository: str, tag: str, layers: list[dict[str, Any]]) -> str:
        config = {"mediaType": "application/vnd.oci.empty.v1+json", **self.blob(repository, EMPTY)}
        return self.push_manifest(repository, tag, MANIFEST, {"config": config, "layers": layers})

    def push_manifest(self, repository: str, tag: str, media_type: str, body: Mapping[str, Any]) -> str:
        text = json.dumps({"schemaVersion": 2, "mediaType": media_type, **body}).encode()
        with self._client() as client:
            headers = {"Content-Type": media_type}
            client.put(f"/v2/{repository}/manifests/{tag}", content=text, headers=headers).raise_for_status()
        return "sha256:" + hashlib.sha256(text).hexdigest()

    def blob(self, repository: str, content: bytes) -> dict[str, Any]:
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        with self._client() as client:
            begun = client.post(f"/v2/{repository}/blobs/uploads/").raise_for_status()
            where = httpx.URL(begun.headers["location"]).copy_merge_params({"digest": digest})
            headers = {"Content-Type": "application/octet-stream"}
            client.put(where, content=content, headers=headers).raise_for_status()
        return {"digest": digest, "size": len(content)}

    def _client(self) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.certificate))
        return httpx.Client(base_url=f"https://{self.open}", verify=context, trust_env=False)

    def start(self, name: str, auth: Mapping[str, Any]) -> str:
        """Its HOST:PORT, once it answers."""
        (port,) = ports(1)
        config = self.folder / f"{name}.yml"
        tls = {"certificate": str(self.certificate), "key": str(self.key)}
        config.write_text(json.dumps({  # JSON is YAML
            "version": 0.1, "log": {"level": "info"}, "auth": auth,
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "storage")}},
            "http": {"addr": f"127.0.0.1:{port}", "tls": tls, "secret": "of the tests"},
        }))  # fmt: skip
        log = self.folder / f"{name}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen([PACKAGE, "serve", str(config)], stdout=sink, stderr=sink)
        self.processes.append(process)
        deadline = time.monotonic() + START_SECONDS
        context = ssl.create_default_context(cafile=str(self.certificate))
        while True:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"https://localhost:{port}/v2/", verify=context, trust_env=False)
                return f"localhost:{port}"
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)


@contextlib.contextmanager
def running(folder: Path, pair: tuple[Path, Path] | None = None) -> Iterator[Registries]:
    """All three, from ready to ended. `pair` is a certificate of `localhost` and its key; a new one without it."""
    certificate, key = pair or lab.certificate(folder)
    with TokenServer(folder, certificate, key) as tokens:
        found = Registries(folder, certificate, key, tokens)
        try:
            found.open = found.start("open", {})
            (folder / "htpasswd").write_text(HTPASSWD)
            found.passwords = found.start("passwords", {"htpasswd": {"realm": "r", "path": str(folder / "htpasswd")}})
            found.tokened = found.start("tokened", {"token": {
                "realm": f"{tokens.url}/token", "service": "registry", "issuer": "tests",
                "rootcertbundle": str(tokens.signer),
            }})  # fmt: skip
            yield found
        finally:
            for process in found.processes:
                process.terminate()
            for process in found.processes:
                process.wait(20)


class TokenServer:
    """Gives a token to whoever has the password, for 120 seconds; signs with a key whose certificate is `signer`."""

    def __init__(self, folder: Path, certificate: Path, key: Path) -> None:
        self.signer, self._key = folder / "signer.crt", folder / "signer.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=signer",
             "-keyout", str(self._key), "-out", str(self.signer)],
            check=True, capture_output=True,
        )  # fmt: skip
        self.password = PASSWORD
        self.given: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                self._answer(self.headers.get("Authorization") == outer.basic, query["scope"][0])

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                good = form["grant_type"] == ["refresh_token"] and form["refresh_token"] == [outer.password]
                self._answer(good, form["scope"][0])

            def _answer(self, good: bool, scope: str) -> None:
                body = json.dumps({"token": outer.token(scope), "expires_in": 120} if good else {}).encode()
                self.send_response(200 if good else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self._server.server_port}"

    @property
    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{USER}:{self.password}".encode()).decode()

    def token(self, scope: str) -> str:
        kind, name, actions = scope.split(":")
        now = int(time.time())
        der = ssl.PEM_cert_to_DER_cert(self.signer.read_text())
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        claims = {
            "iss": "tests", "sub": USER, "aud": "registry", "exp": now + 120, "nbf": now - 5, "iat": now, "jti": "1",
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }  # fmt: skip
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        command = ["openssl", "dgst", "-sha256", "-sign", str(self._key)]
        signature = subprocess.run(command, input=signed.encode(), check=True, capture_output=True).stdout
        self.given.append(f"{signed}.{_encoded(signature)}")
        return self.given[-1]

    def __enter__(self) -> TokenServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
