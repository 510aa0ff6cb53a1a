"""Thousands of replicas in one process: the runtime's contract without a model, at every address of the fake pods.

Runs in a network namespace where all pod addresses are local (netns.sh). Which replica is meant is the address that a
connection was made to. Also serves the adapters' artifacts, over https, so that an operator finds their sources.
Port 8000 serves, 8001 is the admin port, 8443 the artifacts, 8002 what a test wants to know or break.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import ssl
import time
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

LOADING_SECONDS = 0.05
PAGES = 100_000
TOKENS = 4


@dataclass
class Replica:
    """What one runtime process would remember."""

    incarnation: str = field(default_factory=lambda: uuid.uuid4().hex)
    epoch: int = 0
    draining: bool = False
    ready_at: float = 0.0
    version: int = 0
    adapters: dict[str, dict[str, Any]] = field(default_factory=dict)
    encoded: tuple[int, bytes] = (-1, b"")

    def state(self) -> bytes:
        """The body of `GET /admin/state`; made once per change, as an ETag asks for."""
        if self.ready_at and time.monotonic() >= self.ready_at:
            self.ready_at, self.version = 0.0, self.version + 1
        if self.encoded[0] != self.version:
            self.encoded = self.version, json.dumps(self._state()).encode()
        return self.encoded[1]

    def _state(self) -> dict[str, Any]:
        used = sum(adapter["pages"] for adapter in self.adapters.values())
        return {
            "version": 1, "incarnation": self.incarnation, "epoch": self.epoch, "message": "", "progress": 1.0,
            "phase": "Draining" if self.draining else "Loading" if time.monotonic() < self.ready_at else "Ready",
            "model": {"servedName": "light", "architecture": "llama", "dtype": "float32", "maxModelLen": 2048,
                      "maxRank": 64, "parameters": 1},
            "pages": {"total": PAGES, "free": PAGES - used, "kv": 0, "adapters": used, "evictable": 0, "bytes": 1},
            "load": {"running": 0, "waiting": 0, "waitingTokens": 0, "stepSeconds": 0.0, "outputTokensPerSecond": 0.0},
            "counters": {}, "adapters": list(self.adapters.values()),
        }  # fmt: skip


class Light:
    """All replicas, by address, and what was asked of each."""

    def __init__(self, admin_token: str) -> None:
        self._token = admin_token
        self.start_seconds = 0.0
        self.replicas: defaultdict[str, Replica] = defaultdict(self._started)
        self.calls: Counter[tuple[str, str]] = Counter()
        self.salt: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    def admin(self) -> web.Application:
        app = web.Application(middlewares=[self._admit])
        app.router.add_get("/admin/state", self._state)
        app.router.add_put("/admin/adapters/{id}", self._put)
        app.router.add_delete("/admin/adapters/{id}", self._delete)
        app.router.add_post("/admin/drain", self._drain)
        return app

    def serving(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", _fine)
        app.router.add_get("/ready", _fine)
        app.router.add_post("/v1/completions", self._complete)
        return app

    def artifacts(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/{adapter}/{file}", self._artifact)
        return app

    def control(self) -> web.Application:
        """For tests: `GET /calls` (counts of PUT and DELETE by address), `POST /restart/ADDRESS`,
        `POST /retrain/ADAPTER` (its artifact changes), `POST /start/SECONDS` (how long starts take)."""
        app = web.Application()
        app.router.add_get("/calls", self._calls)
        app.router.add_post("/restart/{address}", self._restart)
        app.router.add_post("/retrain/{adapter}", self._retrain)
        app.router.add_post("/start/{seconds}", self._start)
        return app

    def _started(self) -> Replica:
        return Replica(ready_at=time.monotonic() + self.start_seconds if self.start_seconds else 0.0)

    @web.middleware
    async def _admit(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {self._token}":
            return _refused(401, "unauthorized", "wrong token")
        replica = self._replica(request)
        epoch = int(request.headers.get("Lorafleet-Epoch") or 0)
        if epoch and epoch < replica.epoch:
            return _refused(409, "stale_epoch", f"epoch {epoch} is older than {replica.epoch}")
        if epoch > replica.epoch:
            replica.epoch, replica.version = epoch, replica.version + 1
        if request.method != "GET":
            self.calls[request.method, _address(request)] += 1
        return await handler(request)  # type: ignore[no-any-return]

    def _replica(self, request: web.Request) -> Replica:
        return self.replicas[_address(request)]

    async def _state(self, request: web.Request) -> web.Response:
        replica = self._replica(request)
        body = replica.state()
        etag = f'"{replica.incarnation[:8]}-{replica.version}"'
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers={"ETag": etag})
        return web.Response(body=body, content_type="application/json", headers={"ETag": etag})

    async def _put(self, request: web.Request) -> web.Response:
        replica, adapter, body = self._replica(request), request.match_info["id"], await request.json()
        known = replica.adapters.get(adapter)
        if known is None or known["revision"] != body["revision"]:
            size = sum(file["size"] for file in body["files"])
            entry = {
                "id": adapter, "revision": body["revision"], "state": "Loading", "reason": "", "message": "", "rank": 8,
                "pages": 1, "bytes": size, "resident": True, "pinned": body["pinned"], "running": 0, "waiting": 0,
            }  # fmt: skip
            task = asyncio.create_task(self._load(replica, adapter, entry))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            known = entry
        answer = {"id": adapter, "revision": body["revision"], "state": known["state"]}
        return web.json_response(answer, status=202)

    async def _load(self, replica: Replica, adapter: str, entry: dict[str, Any]) -> None:
        replica.adapters[adapter], replica.version = entry, replica.version + 1
        await asyncio.sleep(LOADING_SECONDS)
        entry["state"], replica.version = "Ready", replica.version + 1

    async def _delete(self, request: web.Request) -> web.Response:
        replica = self._replica(request)
        replica.adapters.pop(request.match_info["id"], None)
        replica.version += 1
        return web.Response(status=204)

    async def _drain(self, request: web.Request) -> web.Response:
        replica = self._replica(request)
        replica.draining, replica.version = True, replica.version + 1
        return web.json_response({})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body, replica = await request.json(), self._replica(request)
        held = replica.adapters.get(body["model"])
        if "." in body["model"] and (held is None or held["state"] != "Ready"):
            return _refused(404, "model_not_found", f"no {body['model']} at {_address(request)}")
        text = f"{body['model']} at {_address(request)}"
        choice = {"index": 0, "text": text, "finish_reason": "stop", "token_ids": list(range(TOKENS))}
        usage = {"prompt_tokens": 1, "completion_tokens": TOKENS, "total_tokens": TOKENS + 1}
        whole = {"id": "cmpl-1", "object": "text_completion", "created": 0, "model": body["model"]}
        if not body.get("stream"):
            return web.json_response({**whole, "choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in ({**whole, "choices": [choice]}, {**whole, "choices": [], "usage": usage}):
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _artifact(self, request: web.Request) -> web.Response:
        adapter, file = request.match_info["adapter"], request.match_info["file"]
        if file not in ("adapter_config.json", "adapter_model.safetensors"):
            raise web.HTTPNotFound
        text = f"{adapter} {file} {self.salt[adapter]}".encode()
        etag = f'"{hashlib.md5(text, usedforsecurity=False).hexdigest()}"'
        return web.Response(body=text, headers={"ETag": etag})

    async def _calls(self, request: web.Request) -> web.Response:
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for (method, address), count in self.calls.items():
            found[address][method] = count
        return web.json_response(found)

    async def _restart(self, request: web.Request) -> web.Response:
        self.replicas[request.match_info["address"]] = self._started()
        return web.json_response({})

    async def _start(self, request: web.Request) -> web.Response:
        self.start_seconds = float(request.match_info["seconds"])
        return web.json_response({})

    async def _retrain(self, request: web.Request) -> web.Response:
        self.salt[request.match_info["adapter"]] += 1
        return web.json_response({})


async def _fine(_: web.Request) -> web.Response:
    return web.json_response({})


def _address(request: web.Request) -> str:
    assert request.transport is not None
    return str(request.transport.get_extra_info("sockname")[0])


def _refused(status: int, code: str, message: str) -> web.Response:
    error = {"message": message, "type": "error", "param": None, "code": code}
    return web.json_response({"error": error}, status=status)


async def _serve(light: Light, certificate: str, key: str) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    for app, port, tls in (
        (light.serving(), 8000, None), (light.admin(), 8001, None), (light.control(), 8002, None),
        (light.artifacts(), 8443, context),
    ):  # fmt: skip
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", port, ssl_context=tls, backlog=1024).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--admin-token", required=True)
    options = parser.parse_args()
    asyncio.run(_serve(Light(options.admin_token), options.certificate, options.key))


if __name__ == "__main__":
    main()
