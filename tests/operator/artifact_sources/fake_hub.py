"""The Hugging Face hub's HTTP protocol on loopback, as far as repositories of files need it, and its storage beside it.

As the hub does: the API describes a revision; large files redirect to signed links of another host, which refuses a
bearer token; small ones redirect within the hub; what is private is 401 to strangers, with X-Error-Code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_token-of-the-tests"
SIGNATURE = "signature-of-the-tests"
LARGE = (".safetensors", ".bin")


@dataclass
class Hub:
    """`repositories`: revision → path → content, by name. A request without `TOKEN` sees none of the `private`."""

    url: str = ""
    storage: str = ""
    repositories: dict[str, dict[str, Mapping[str, bytes]]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    token: str = TOKEN
    asked: list[str] = field(default_factory=list)

    def put(self, repository: str, files: Mapping[str, bytes], *revisions: str) -> str:
        """The commit, which `main` and `revisions` name from now on."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()
        known = self.repositories.setdefault(repository, {})
        known.update(dict.fromkeys(("main", commit, *revisions), files))
        return commit


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (_hub(hub), _storage(hub))]
    hub.url, hub.storage = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield hub
    for server in servers:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def _hub(hub: Hub) -> type[_Handler]:
    class Handler(_Handler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            hub.asked.append(parts.path)
            path = parts.path.removeprefix("/api/models/").removeprefix("/api/resolve-cache/models/").strip("/")
            organisation, name, *rest = path.split("/")
            repository = f"{organisation}/{name}"
            if repository in hub.renamed:
                self.answer(307, Location=self.path.replace(repository, hub.renamed[repository]))
            elif repository not in hub.repositories or (repository in hub.private and not self._known()):
                self.answer(401, X_Error_Code="RepoNotFound")
            elif parts.path.startswith("/api/models/"):
                self._describe(repository, unquote(rest[1]), parse_qs(parts.query).get("blobs") == ["true"])
            elif parts.path.startswith("/api/resolve-cache/"):
                self.answer(200, hub.repositories[repository][rest[0]]["/".join(rest[1:])])
            else:
                self._resolve(repository, rest[1], unquote("/".join(rest[2:])))

        def _known(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {hub.token}"

        def _describe(self, repository: str, revision: str, blobs: bool) -> None:
            files = hub.repositories[repository].get(revision)
            if files is None:
                self.answer(404, X_Error_Code="RevisionNotFound")
                return
            commit = next(r for r, held in hub.repositories[repository].items() if held is files and len(r) == 40)
            siblings = [
                {"rfilename": path, **(_blob(path, content) if blobs else {})} for path, content in files.items()
            ]
            body = {"id": repository, "sha": commit, "private": repository in hub.private, "siblings": siblings}
            self.answer(200, json.dumps(body).encode())

        def _resolve(self, repository: str, revision: str, path: str) -> None:
            files = hub.repositories[repository].get(revision, {})
            if path not in files:
                self.answer(404, X_Error_Code="EntryNotFound")
            elif path.endswith(LARGE):
                where = f"{hub.storage}/{repository}/{revision}/{path}?Signature={SIGNATURE}"
                self.answer(302, Location=where, X_Linked_Size=str(len(files[path])))
            else:
                self.answer(307, Location=f"/api/resolve-cache/models/{repository}/{revision}/{path}")

    return Handler


def _storage(hub: Hub) -> type[_Handler]:
    class Handler(_Handler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if self.headers.get("Authorization"):
                self.answer(400, b"only one auth mechanism allowed")
            elif parse_qs(parts.query).get("Signature") != [SIGNATURE]:
                self.answer(403)
            else:
                organisation, name, revision, *path = parts.path.strip("/").split("/")
                self.answer(200, hub.repositories[f"{organisation}/{name}"][revision]["/".join(path)])

    return Handler


def _blob(path: str, content: bytes) -> dict[str, object]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if not path.endswith(LARGE):
        return {"size": len(content), "blobId": blob}
    lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return {"size": len(content), "blobId": blob, "lfs": lfs}
