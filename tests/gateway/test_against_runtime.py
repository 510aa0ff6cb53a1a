"""The gateway over the runtime's real front end, its engines reciting: what the other tests' fake replica
promises."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from lorafleet_runtime.frontend.adapters import Adapters
from lorafleet_runtime.frontend.artifacts import ArtifactStore
from lorafleet_runtime.frontend.metrics import Metrics
from lorafleet_runtime.frontend.scripted_engine import ScriptedEngine
from lorafleet_runtime.frontend.server import create_app
from lorafleet_runtime.frontend.service import Service, Settings
from lorafleet_runtime.frontend.tokenizer import load_tokenizer
from lorafleet_runtime.model.tiny_tokenizer import save_tiny_tokenizer
from tests.gateway.gateway_kit import KEY, TOKEN, Kit, chat, fleet_document, tenant, write

TEXT = "Hello, wörld 😀! And so on, for a while."
EOS = 258


@dataclass
class Replica:
    """One real front end on a real port."""

    name: str
    engine: ScriptedEngine
    url: str


@contextlib.asynccontextmanager
async def front_end(name: str, folder: Path) -> AsyncIterator[Replica]:
    """A replica that answers everything with TEXT, a token every 10 ms."""
    engine = ScriptedEngine(lambda request: [*TEXT.encode(), EOS])
    engine.seconds = 0.01
    tokenizer = load_tokenizer(str(save_tiny_tokenizer(folder)))
    adapters = Adapters(engine, ArtifactStore(folder))
    service = Service(engine, tokenizer, adapters, Settings("smol-135m", TOKEN), Metrics(engine, "smol-135m"))
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(service), log_config=None, access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    try:
        yield Replica(name, engine, f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        server.should_exit = True
        await serving


@pytest.fixture
async def replicas(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Replica]]:
    """Two replicas, in a fleet that `kit` serves."""
    async with contextlib.AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(front_end(name, tmp_path_factory.mktemp(name)))
            for name in ("smol-0", "smol-1")
        ]
        rows = [{"name": r.name, "incarnation": "i", "url": r.url, "state": "Ready"} for r in made]
        write(kit.folder, "models.smol.json", fleet_document(rows, []))
        write(kit.folder, "tenants.json", {"version": 1, "generation": 1, "tenants": [tenant("acme", KEY)]})
        await kit.serve()
        yield made


def running(replicas: list[Replica]) -> Replica:
    """The replica that was asked."""
    [asked] = [replica for replica in replicas if replica.engine.requests]
    return asked


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_stream_outlives_the_engine_it_began_on(kit: Kit, replicas: list[Replica], path: str) -> None:
    body: dict[str, Any] = {"model": "smol-135m", "prompt": "Hi", "max_tokens": 100}
    if path == "/v1/chat/completions":
        body = chat("smol-135m", max_tokens=100)
    asking = asyncio.create_task(kit.chunks_of({**body, "stream_options": {"include_usage": True}}, path))
    await kit.until(lambda: any(replica.engine.requests for replica in replicas))
    first = running(replicas)
    await asyncio.sleep(0.15)
    first.engine.die("killed by the test")

    chunks = await asking

    rows = [row for row in map(_decoded, chunks[:-1]) if row["choices"]]
    texts = [c["text"] if "text" in c else c["delta"].get("content", "") for row in rows for c in row["choices"]]
    other = next(replica for replica in replicas if replica is not first)
    assert chunks[-1] == "[DONE]"
    assert "".join(texts) == TEXT
    assert len({(row["id"], row["created"], row["model"]) for row in rows}) == 1
    assert 5 < len(other.engine.requests[0].output_token_ids) < len(TEXT.encode())
    assert _decoded(chunks[-2])["usage"]["completion_tokens"] == len(TEXT.encode()) + 1


def _decoded(chunk: str) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(chunk)
    assert "error" not in row, row
    assert "token_ids" not in chunk
    return row


async def test_a_real_client_is_served_whole_and_streamed(kit: Kit, replicas: list[Replica]) -> None:
    async with kit.client() as client:
        whole = await client.completions.create(model="smol-135m", prompt="Hi", max_tokens=100)
        stream = await client.completions.create(model="smol-135m", prompt="Hi", max_tokens=100, stream=True)
        texts = [chunk.choices[0].text async for chunk in stream]

    assert whole.choices[0].text == TEXT
    assert "".join(texts) == TEXT


async def test_a_client_that_leaves_ends_its_generation(kit: Kit, replicas: list[Replica]) -> None:
    asking = asyncio.create_task(kit.chunks_of(chat("smol-135m", max_tokens=100)))
    await kit.until(lambda: any(replica.engine.requests for replica in replicas))
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    await kit.until(lambda: bool(running(replicas).engine.aborted))


async def test_the_runtimes_own_refusal_reaches_the_client(kit: Kit, replicas: list[Replica]) -> None:
    async with kit.http.post("/v1/completions", json={"model": "smol-135m", "prompt": "x", "top_p": 7}) as response:
        error = (await response.json())["error"]

    assert (response.status, error["param"]) == (400, "top_p")
