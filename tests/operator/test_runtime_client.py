"""The admin port's answers become values or typed errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lorafleet_operator import errors
from lorafleet_operator.core.objects import Artifact, ArtifactFile
from lorafleet_operator.runtime_client import RuntimeClient, parse_state

ARTIFACT = Artifact("sha256:1", (ArtifactFile("adapter_config.json", "file:///a", "ab", 2),))
STATE = {
    "version": 1, "incarnation": "i1", "epoch": 3, "phase": "Ready", "message": "", "progress": 1.0,
    "pages": {"total": 10, "free": 4}, "load": {"running": 2, "waiting": 1},
    "adapters": [{"id": "acme.pirate", "revision": "sha256:1", "state": "Ready", "rank": 8, "pages": 1, "bytes": 5,
                  "resident": True, "running": 1, "waiting": 0}],
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


Answer = Callable[[Request], web.Response]


def answer(status: int = 200, body: object = None, **headers: str) -> web.Response:
    content = None if body is None else json.dumps(body).encode()
    return web.Response(status=status, body=content, headers=headers)


class Port:
    """An admin port on loopback: remembers the requests, answers as told."""

    def __init__(self, server: TestServer) -> None:
        self.requests: list[Request] = []
        self.answer: Answer = lambda request: answer(200, {})
        self.server = server
        self.url = str(server.make_url("/")).rstrip("/")
        self.client = RuntimeClient(self.url, "secret", epoch=7, timeout=0.5)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        seen = Request(request.method, request.path, request.headers, await request.read())
        self.requests.append(seen)
        return self.answer(seen)


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await made.handle(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    server = TestServer(app)
    await server.start_server()
    made = Port(server)
    yield made
    await made.client.close()
    await server.close()


def refusal(status: int, code: str, message: str = "because") -> Answer:
    return lambda request: answer(status, {"error": {"message": message, "type": "t", "code": code}})


async def test_the_state_is_read_with_what_decisions_need(port: Port) -> None:
    port.answer = lambda request: answer(200, STATE, ETag='"1"')
    state = await port.client.state()

    assert (state.incarnation, state.phase, state.epoch) == ("i1", "Ready", 3)
    assert (state.pages_total, state.pages_free, state.running, state.waiting) == (10, 4, 2, 1)
    assert [(a.id, a.state, a.rank, a.running) for a in state.adapters] == [("acme.pirate", "Ready", 8, 1)]


async def test_an_unchanged_state_is_the_same_object(port: Port) -> None:
    def told(request: Request) -> web.Response:
        unchanged = request.headers.get("If-None-Match") == '"1"'
        return answer(304) if unchanged else answer(200, STATE, ETag='"1"')

    port.answer = told
    first, second = await port.client.state(), await port.client.state()

    assert first is second
    assert len(port.requests) == 2


async def test_a_load_carries_token_epoch_and_files(port: Port) -> None:
    port.answer = lambda request: answer(202, {"id": "acme.pirate", "state": "Loading"})
    state = await port.client.put_adapter("acme.pirate", ARTIFACT, pinned=True)
    (request,) = port.requests

    assert state == "Loading"
    assert (request.method, request.path) == ("PUT", "/admin/adapters/acme.pirate")
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers["Lorafleet-Epoch"] == "7"
    assert json.loads(request.body) == {
        "revision": "sha256:1", "pinned": True,
        "files": [{"name": "adapter_config.json", "url": "file:///a", "sha256": "ab", "size": 2}],
    }  # fmt: skip


async def test_a_link_takes_its_header_along(port: Port) -> None:
    port.answer = lambda request: answer(202, {"id": "acme.pirate", "state": "Loading"})
    (file,) = ARTIFACT.files
    linked = replace(ARTIFACT, files=(replace(file, url="https://r/blob", authorization="Bearer short"),))
    await port.client.put_adapter("acme.pirate", linked)

    assert json.loads(port.requests[0].body)["files"][0]["authorization"] == "Bearer short"
    assert "short" not in repr(linked)


async def test_a_runtime_that_wants_its_model_is_told(port: Port) -> None:
    port.answer = lambda request: answer(200, {**STATE, "wants": "model"})
    assert (await port.client.state()).wants == "model"
    port.answer = lambda request: answer(202, {"revision": "sha256:1", "state": "Loading"})
    await port.client.put_model(ARTIFACT)
    request = port.requests[-1]
    assert (request.method, request.path, request.headers["Lorafleet-Epoch"]) == ("PUT", "/admin/model", "7")
    assert json.loads(request.body)["files"][0]["sha256"] == "ab"


async def test_a_place_on_a_volume_is_described_or_not_yet_known(port: Port) -> None:
    described = {"name": "adapter_config.json", "url": "file:///a", "sha256": "ab", "size": 2}
    port.answer = lambda request: answer(200, {"files": [described]})
    assert await port.client.describe_artifact("weights/one") == ARTIFACT.files
    assert json.loads(port.requests[0].body) == {"path": "weights/one"}
    port.answer = lambda request: answer(202, {"state": "Reading"})
    assert await port.client.describe_artifact("weights/one") is None
    port.answer = lambda request: answer(200, {"files": [{}]})
    with pytest.raises(errors.RuntimeProtocolError):
        await port.client.describe_artifact("weights/one")


@pytest.mark.parametrize(("status", "gone"), [(204, True), (202, False)])
async def test_an_unload_says_whether_it_is_gone(port: Port, status: int, gone: bool) -> None:
    port.answer = lambda request: answer(status, {} if status == 202 else None)

    assert await port.client.delete_adapter("acme.pirate") is gone


async def test_a_drain_is_fenced(port: Port) -> None:
    await port.client.drain()

    assert [(r.method, r.path, r.headers["Lorafleet-Epoch"]) for r in port.requests] == [("POST", "/admin/drain", "7")]


@pytest.mark.parametrize(("status", "code", "kind", "reason"), [
    (401, "unauthorized", errors.Unauthorized, "Unauthorized"),
    (409, "stale_epoch", errors.StaleEpoch, "StaleEpoch"),
    (409, "digest_mismatch", errors.AdapterRefused, "DigestMismatch"),
    (422, "invalid_adapter", errors.AdapterRefused, "InvalidAdapter"),
    (422, "rank_too_high", errors.AdapterRefused, "RankTooHigh"),
    (502, "fetch_failed", errors.FetchFailed, "FetchFailed"),
    (507, "no_room", errors.NoRoom, "NoRoom"),
    (500, "internal", errors.RuntimeRefused, "RuntimeRefused"),
])  # fmt: skip
async def test_each_refusal_has_its_type_and_reason(
    port: Port, status: int, code: str, kind: type[errors.RuntimeRefused], reason: str
) -> None:
    port.answer = refusal(status, code)
    with pytest.raises(kind, match="because") as caught:
        await port.client.put_adapter("acme.pirate", ARTIFACT)

    assert type(caught.value) is kind
    assert (caught.value.reason, caught.value.status, caught.value.code) == (reason, status, code)


async def test_an_error_without_the_contracts_body_is_still_a_refusal(port: Port) -> None:
    port.answer = lambda request: web.Response(status=503, text="<html>no</html>")
    with pytest.raises(errors.RuntimeRefused, match="<html>no") as caught:
        await port.client.state()

    assert caught.value.status == 503


async def test_no_connection_is_unreachable(port: Port) -> None:
    await port.server.close()
    with pytest.raises(errors.RuntimeUnreachable, match=f"GET {port.url}/admin/state"):
        await port.client.state()


async def test_no_answer_in_time_is_unreachable(port: Port) -> None:
    released = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        await released.wait()
        return answer()

    port.handle = hang  # type: ignore[method-assign]
    with pytest.raises(errors.RuntimeUnreachable, match="no answer in time"):
        await port.client.state()
    released.set()


async def test_an_answer_that_breaks_off_is_unreachable(port: Port) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.close()
        return response

    port.handle = cut  # type: ignore[method-assign]
    with pytest.raises(errors.RuntimeUnreachable, match="GET"):
        await port.client.state()


@pytest.mark.parametrize(
    "body", [b"not json", b"[]", b"{}", b'{"incarnation": "i", "phase": "Ready", "adapters": [{}]}']
)
async def test_an_answer_outside_the_contract_is_a_protocol_error(port: Port, body: bytes) -> None:
    port.answer = lambda request: web.Response(body=body)
    with pytest.raises(errors.RuntimeProtocolError):
        await port.client.state()


def test_a_state_while_loading_may_lack_what_is_not_known_yet() -> None:
    body: dict[str, Any] = {
        "incarnation": "i",
        "phase": "Loading",
        "progress": 0.5,
        "model": None,
        "pages": None,
        "load": None,
    }

    assert parse_state(body).progress == 0.5
