"""A replica before it has a model: both ports answer, and the admin port takes the order that names one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from lorafleet_runtime.errors import ApiError, ArtifactError
from lorafleet_runtime.frontend.admin import Fence, report
from lorafleet_runtime.frontend.admin_schemas import ModelBody
from lorafleet_runtime.frontend.artifact_files import ArtifactFile
from lorafleet_runtime.frontend.listeners import new_server
from lorafleet_runtime.frontend.model_order import ModelOrder
from lorafleet_runtime.frontend.schemas import parse
from lorafleet_runtime.frontend.web import authorize, new_app, read_body
from lorafleet_runtime.protocol import EngineState

_LAST_WORDS_SECONDS = 0.5


async def wait_for_model(
    order: ModelOrder, listeners: Sequence[socket.socket], token: str, fence: Fence, incarnation: str,
    stop: asyncio.Event,
) -> Path | None:  # fmt: skip
    """What `--model` would name, once the operator has said and it has been fetched; None when `stop` came first.

    `listeners` are the serving and the admin port; they stay open for the servers that come after these.
    """
    if order.known is not None:
        return order.known
    servers = [new_server(_serving_app(order)), new_server(_admin_app(order, token, fence, incarnation))]
    tasks = [
        asyncio.create_task(server.serve(sockets=[listener.dup()]))
        for server, listener in zip(servers, listeners, strict=True)
    ]
    path, stopped = asyncio.create_task(order.path()), asyncio.create_task(stop.wait())
    await asyncio.wait([path, stopped], return_when=asyncio.FIRST_COMPLETED)
    for server in servers:
        server.should_exit = True
    await asyncio.wait(tasks, timeout=_LAST_WORDS_SECONDS)
    for server in servers:
        server.force_exit = True
    await asyncio.wait(tasks, timeout=_LAST_WORDS_SECONDS)
    stopped.cancel()
    if path.done():
        return path.result()
    path.cancel()
    await order.close()
    return None


def _serving_app(order: ModelOrder) -> FastAPI:
    app = new_app("lorafleet runtime, without a model yet")

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200)

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def not_ready(path: str) -> Response:
        raise ApiError(503, f"the model is not ready: {order.message}", "not_ready", retry_after=1)

    return app


def _admin_app(order: ModelOrder, token: str, fence: Fence, incarnation: str) -> FastAPI:
    app = new_app("lorafleet runtime, admin, without a model yet")

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200)

    @app.get("/admin/state")
    async def state(request: Request) -> Response:
        authorize(request, token)
        etag = f'"{incarnation}-waiting-{order.version}-{fence.epoch}"'
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers={"ETag": etag})
        loading = EngineState("Loading", message=order.message, progress=order.progress)
        body = report(loading, incarnation, fence.epoch, "Loading", wants="model" if order.wants else "")
        return _json(200, body, {"ETag": etag})

    @app.put("/admin/model")
    async def put(request: Request) -> Response:
        authorize(request, token)
        fence.admit(request)
        body = parse(ModelBody, await read_body(request))
        files = [ArtifactFile(f.name, f.url, f.sha256, f.size, f.authorization) for f in body.files]
        try:
            order.put(body.revision, files)
        except ArtifactError as error:
            status = 409 if error.code == "digest_mismatch" else 422
            code = "digest_mismatch" if status == 409 else "invalid_model"
            raise ApiError(status, error.message, code) from None
        return _json(202, {"revision": body.revision, "state": "Loading"})

    @app.api_route("/{path:path}", methods=["GET", "PUT", "POST", "DELETE"])
    async def not_ready(request: Request) -> Response:
        authorize(request, token)
        raise ApiError(503, f"the model is not ready: {order.message}", "not_ready", retry_after=1)

    return app


def _json(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")
