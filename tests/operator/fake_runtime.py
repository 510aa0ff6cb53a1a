"""A runtime for faults: the admin contract without a model, that crashes or hangs when told.

It is told by files in $FAKE_RUNTIME_DIR, named for the served name: `NAME.crash` (exit at once, status 3),
`NAME.hang` (answer nothing), `NAME.slow` (seconds of Loading), `NAME.broken` (phase Failed), `NAME.engine` (an
INCARNATION: its engine has died, and another one is Loading under that name, without adapters). An adapter whose config
says `"fake": "REASON"` fails with it. What it says of tenants and in its metrics is in `NAME.tenants` (a JSON list)
and `NAME.metrics`. Without an admin port it passes for a gateway. Every start leaves a line
`PID INCARNATION ARGV` in `NAME.starts`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit
from urllib.request import url2pathname


class Fake:
    """All that one fake runtime remembers."""

    def __init__(self, served_name: str) -> None:
        self.served_name = served_name
        self.folder = Path(os.environ["FAKE_RUNTIME_DIR"])
        self.incarnation = uuid.uuid4().hex
        self.adapters: dict[str, dict[str, Any]] = {}
        self.epoch = 0
        self.draining = False
        self.calls: list[str] = []
        self.started = time.monotonic()
        self.lock = threading.Lock()

    def told(self, what: str) -> str | None:
        path = self.folder / f"{self.served_name}.{what}"
        return path.read_text() if path.exists() else None

    def state(self) -> dict[str, Any]:
        slow = float(self.told("slow") or 0)
        age = time.monotonic() - self.started
        phase, message = "Ready", ""
        if self.told("broken") is not None:
            phase, message = "Failed", "the weights are not a model"
        elif self.draining:
            phase = "Draining"
        elif age < slow:
            phase, message = "Loading", "reading weights"
        if (another := self.told("engine")) is not None:
            phase, message, self.incarnation = "Loading", "the engine died; it is started again", another
            self.adapters.clear()
        return {
            "version": 1, "incarnation": self.incarnation, "epoch": self.epoch, "phase": phase, "message": message,
            "progress": min(1.0, age / slow) if slow else 1.0,
            "model": {"servedName": self.served_name, "architecture": "llama", "dtype": "float32",
                      "maxModelLen": 2048, "maxRank": 64, "parameters": 1},
            "pages": {"total": 100, "free": 100 - len(self.adapters), "kv": 0, "adapters": 0, "evictable": 0,
                      "bytes": 1},
            "load": {"running": 0, "waiting": 0, "waitingTokens": 0, "stepSeconds": 0.0, "outputTokensPerSecond": 0.0},
            "adapters": list(self.adapters.values()),
        }  # fmt: skip

    def put(self, adapter_id: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        config = next(file for file in body["files"] if file["name"] == "adapter_config.json")
        fault = json.loads(Path(url2pathname(urlsplit(config["url"]).path)).read_text()).get("fake", "")
        entry = {
            "id": adapter_id, "revision": body["revision"], "state": "Failed" if fault else "Ready", "reason": fault,
            "message": "told to" if fault else "", "rank": 8, "pages": 1, "bytes": 10, "resident": True,
            "pinned": body["pinned"], "running": 0, "waiting": 0,
        }  # fmt: skip
        self.adapters[adapter_id] = entry
        return 202, {"id": adapter_id, "revision": body["revision"], "state": "Loading"}


class Handler(BaseHTTPRequestHandler):
    fake: ClassVar[Fake]
    protocol_version = "HTTP/1.1"

    def _answer(self, status: int, body: dict[str, Any] | None, **headers: str) -> None:
        payload = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._answer(status, {"error": {"message": message, "type": "error", "param": None, "code": code}})

    def _admitted(self) -> bool:
        if self.path == "/health":  # as a gateway
            self._answer(200, {})
            return False
        while self.fake.told("hang") is not None:
            time.sleep(0.05)
        if self.headers.get("Authorization") != f"Bearer {os.environ['LORAFLEET_ADMIN_TOKEN']}":
            self._refuse(401, "unauthorized", "wrong token")
            return False
        epoch = int(self.headers.get("Lorafleet-Epoch") or self.fake.epoch)
        if epoch < self.fake.epoch:
            self._refuse(409, "stale_epoch", f"epoch {epoch} is older than {self.fake.epoch}")
            return False
        self.fake.epoch = epoch
        return True

    def do_GET(self) -> None:
        if not self._admitted():
            return
        if self.path == "/admin/tenants":
            tenants = json.loads(self.fake.told("tenants") or "[]")
            self._answer(200, {"version": 1, "incarnation": self.fake.incarnation, "floor": 0, "tenants": tenants})
            return
        with self.fake.lock:
            state = self.fake.state()
        etag = f'"{hash(json.dumps(state, sort_keys=True))}"'
        if self.headers.get("If-None-Match") == etag:
            self._answer(304, None, ETag=etag)
        else:
            self._answer(200, state, ETag=etag)

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._admitted():
            with self.fake.lock:
                answer = self.fake.put(urlsplit(self.path).path.rsplit("/", 1)[1], body)
            self._answer(*answer)

    def do_DELETE(self) -> None:
        if self._admitted():
            with self.fake.lock:
                self.fake.adapters.pop(self.path.rsplit("/", 1)[1], None)
            self._answer(204, None)

    def do_POST(self) -> None:
        if self._admitted():
            self.fake.draining = True
            self._answer(200, {})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class names it
        return


class Server(ThreadingHTTPServer):
    daemon_threads = True


def exit_with_parent() -> None:
    while sys.stdin.buffer.read(1):
        continue
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("--served-name", default="gateway")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--admin-port", type=int)
    parser.add_argument("--exit-with-parent", action="store_true")
    options, _ = parser.parse_known_args()
    fake = Fake(options.served_name)
    with (fake.folder / f"{fake.served_name}.starts").open("a") as file:
        file.write(f"{os.getpid()} {fake.incarnation} {' '.join(sys.argv[1:])}\n")
    if fake.told("crash") is not None:
        print("told to crash", file=sys.stderr)
        sys.exit(3)
    if options.exit_with_parent:
        threading.Thread(target=exit_with_parent, daemon=True).start()
    Handler.fake = fake
    Server((options.host, options.admin_port or options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
