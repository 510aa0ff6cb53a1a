"""A whole gateway in this process, on a loopback port, over a folder that the test writes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import openai
import uvicorn
from starlette.applications import Starlette

from lorafleet_gateway.app import create_app
from lorafleet_gateway.config import Limits
from lorafleet_gateway.core.fleet_model import Tenant
from lorafleet_gateway.fleet import FleetFolder
from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.server import Server

KEY = "sk-acme"
OTHER_KEY = "sk-globex"
AUTH = {"Authorization": f"Bearer {KEY}"}
TOKEN = "gateway-token"
REVISION = "sha256:" + "a" * 64
OLD_REVISION = "sha256:" + "b" * 64
QUICK = Limits(
    place_seconds=0.4,
    resume_seconds=2.0,
    connect_seconds=1.0,
    backoff_seconds=0.02,
    backoff_most_seconds=0.1,
    avoid_seconds=0.3,
    poll_seconds=0.02,
    load_seconds=0.05,
    stop_seconds=1.0,
)


def chat(model: str = "pirate", **fields: Any) -> dict[str, Any]:
    """A chat request's body."""
    return {"model": model, "messages": [{"role": "user", "content": "my secret prompt"}], **fields}


def placement(replica: str, revision: str = REVISION, state: str = "Ready") -> dict[str, Any]:
    return {"replica": replica, "revision": revision, "state": state}


def adapter(identity: str, placements: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """An adapter of the fleet document."""
    namespace, name = identity.split(".", 1)
    row = {"id": identity, "namespace": namespace, "name": name, "servedName": name, "revision": REVISION}
    return {**row, "state": "Ready", "reason": "", "message": "", "placements": placements, **fields}


def fleet_document(
    replicas: list[dict[str, Any]], adapters: list[dict[str, Any]], generation: int = 1
) -> dict[str, Any]:
    base = {"namespace": "models", "name": "smol", "servedName": "smol-135m", "maxModelLen": 2048}
    rows = {"baseModel": base, "replicas": replicas, "adapters": adapters}
    return {"version": 1, "generation": generation, **rows}


def tenant(
    name: str, *keys: str, weight: float = 1, models: bool = True, quota: dict[str, int] | None = None
) -> dict[str, Any]:
    return {
        "name": name,
        "weight": weight,
        "namespaces": [name],
        "models": [{"namespace": "models", "name": "smol"}] if models else [],
        "keys": [{"id": f"{name}/{key}", "sha256": hashlib.sha256(key.encode()).hexdigest()} for key in keys],
        "quota": {"requestsPerMinute": 600} if quota is None else quota,
    }


def write(folder: Path, name: str, document: object) -> None:
    """Replace a document as the operator does: whole, in one step."""
    text = document if isinstance(document, str) else json.dumps(document)
    (folder / f".{name}.new").write_text(text)
    os.replace(folder / f".{name}.new", folder / name)


@dataclass
class Kit:
    """Replicas, documents and one gateway; tenants `acme` (weight 2) and `globex` (no bare base model). More gateways
    over the same fleet are `sibling`s."""

    folder: Path
    limits: Limits = QUICK
    replicas: list[FakeRuntime] = field(default_factory=list)
    quota: dict[str, int] | None = None
    """Of acme; set before `publish`."""
    tenants: list[dict[str, Any]] | None = None
    """In place of acme and globex."""
    siblings: list[Kit] = field(default_factory=list)
    generation: int = 0
    url: str = ""
    _server: Server | None = None
    _serving: asyncio.Task[None] | None = None
    _http: aiohttp.ClientSession | None = None

    def __post_init__(self) -> None:
        self.source = FleetFolder(self.folder, self.limits.poll_seconds)
        self.app: Starlette = create_app(self.source, token=TOKEN, limits=self.limits)
        self.metrics = self.app.state.services.metrics

    @property
    def http(self) -> aiohttp.ClientSession:
        assert self._http is not None
        return self._http

    async def replica(self, **fields: Any) -> FakeRuntime:
        """Start one more replica; it is in the fleet at the next `publish`."""
        made = FakeRuntime(f"smol-{len(self.replicas)}", **fields)
        await made.start()
        self.replicas.append(made)
        return made

    async def publish(self, adapters: list[dict[str, Any]] | None = None) -> None:
        """Write both documents; return when the gateway has read them. By default every replica holds
        `acme.pirate`."""
        self.generation += 1
        if adapters is None:
            everywhere = [placement(replica.name) for replica in self.replicas]
            adapters = [adapter("acme.pirate", everywhere), adapter("globex.parrot", everywhere)]
        rows = [{"name": r.name, "incarnation": r.incarnation, "url": r.url, "state": r.state} for r in self.replicas]
        write(self.folder, "models.smol.json", fleet_document(rows, adapters, self.generation))
        tenants = self.tenants
        if tenants is None:
            tenants = [tenant("acme", KEY, weight=2, quota=self.quota), tenant("globex", OTHER_KEY, models=False)]
        write(self.folder, "tenants.json", {"version": 1, "generation": self.generation, "tenants": tenants})
        known = {row["name"]: msgspec.convert(row, Tenant) for row in tenants}
        for gateway in (self, *self.siblings):
            while gateway.url and (gateway._seen() != self.generation or gateway.source.tenants.by_name != known):
                await gateway.source.wait_changed(1.0)

    def _seen(self) -> int:
        part = self.source.fleet.base(("models", "smol"))
        return part.document.generation if part else 0

    async def sibling(self) -> Kit:
        """One more gateway over the same folder and replicas."""
        made = Kit(self.folder, self.limits)
        self.siblings.append(made)
        await made.serve()
        return made

    async def serve(self) -> str:
        """Start the gateway; its address."""
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            self.app, log_config=None, access_log=False, timeout_graceful_shutdown=int(self.limits.stop_seconds)
        )
        self._server = Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            await asyncio.sleep(0.005)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._http = aiohttp.ClientSession(self.url, headers=AUTH)
        return self.url

    async def up(self, replicas: int = 1, **fields: Any) -> list[FakeRuntime]:
        """Replicas, documents and gateway, all at once; the replicas."""
        for _ in range(replicas):
            await self.replica(**fields)
        await self.publish()
        await self.serve()
        return self.replicas

    def client(self, key: str = KEY) -> openai.AsyncOpenAI:
        """The client that users have; close it with `async with`."""
        return openai.AsyncOpenAI(api_key=key, base_url=f"{self.url}/v1", max_retries=0)

    async def text_of(self, body: dict[str, Any] | None = None, path: str = "/v1/chat/completions") -> str:
        """The text of one streamed answer, with what every unbroken stream must be checked on the way."""
        chunks = await self.chunks_of(body or chat(), path)
        assert chunks[-1] == "[DONE]"
        rows = [json.loads(chunk) for chunk in chunks[:-1]]
        assert not [row for row in rows if "error" in row], rows[-1]
        assert len({(row["id"], row["created"], row["model"]) for row in rows}) == 1
        choices = [choice for row in rows for choice in row["choices"]]
        roles = [choice for choice in choices if choice.get("delta", {}).get("role")]
        assert len(roles) == (1 if "chat" in path else 0)
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["length"]
        return "".join(choice.get("text") or choice.get("delta", {}).get("content", "") for choice in choices)

    async def chunks_of(self, body: dict[str, Any], path: str = "/v1/chat/completions") -> list[str]:
        """The payloads of one streamed answer's events."""
        async with self.http.post(path, json={**body, "stream": True}) as response:
            text = await response.text()
            assert response.status == 200, text
            assert response.content_type == "text/event-stream"
        assert text.endswith("\n\n")
        return [event.removeprefix("data: ") for event in text[:-2].split("\n\n")]

    async def until(self, condition: Callable[[], bool], seconds: float = 15.0) -> None:
        """Wait for something that happens soon, and fail when it does not."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it never came true"
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """Stop everything that was started."""
        for sibling in self.siblings:
            await sibling.close()
        if self._http is not None:
            await self._http.close()
        if self._server is not None and self._serving is not None:
            for _ in range(20):  # the client's connections end when the event loop has come round
                if self._server.server_state.connections:
                    await asyncio.sleep(0.001)
            self._server.end()
            await self._serving
        for replica in self.replicas:
            await replica.stop()


async def open_unread(url: str, body: dict[str, Any]) -> socket.socket:
    """A client that has asked and does not read."""
    host, port = url.removeprefix("http://").split(":")
    text = json.dumps(body)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: {AUTH['Authorization']}\r\n"
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, (host, int(port)))
    await loop.sock_sendall(client, f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
    return client


async def stalls(replica: FakeRuntime, seconds: float = 3.0) -> bool:
    """Whether the replica comes to a halt in its writing within `seconds`."""
    before = -1
    for _ in range(int(seconds / 0.25)):
        await asyncio.sleep(0.25)
        if replica.written == before:
            return True
        before = replica.written
    return False


async def error_of(
    kit: Kit, *, key: str = KEY, path: str = "/v1/chat/completions", **request: Any
) -> tuple[int, dict[str, Any]]:
    """The status and error object of an answer that must have OpenAI's shape."""
    request.setdefault("headers", {})
    headers = {"Authorization": f"Bearer {key}", **request.pop("headers")}
    method = request.pop("method", "POST")
    async with kit.http.request(method, path, headers=headers, **request) as response:
        body = await response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    return response.status, body["error"]
