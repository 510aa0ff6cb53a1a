"""The admin port: who may order what, and what this replica reports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from lorafleet_runtime.errors import ApiError, invalid
from lorafleet_runtime.frontend.adapter_orders import delete, put, vllm_load, vllm_unload
from lorafleet_runtime.frontend.admin_schemas import DescribeBody, LoadBody, UnloadBody
from lorafleet_runtime.frontend.fairness_exchange import tenants
from lorafleet_runtime.frontend.schemas import parse
from lorafleet_runtime.frontend.service import Service
from lorafleet_runtime.frontend.web import authorize, json_response, new_app, read_body
from lorafleet_runtime.protocol import EngineState


class Fence:
    """The highest epoch seen. An operator that lost its lease must not undo what its successor did."""

    def __init__(self) -> None:
        self.epoch = 0

    def admit(self, request: Request) -> None:
        """Raises ApiError 409 `stale_epoch` for an order of an older epoch; without the header it is 0."""
        given = request.headers.get("lorafleet-epoch", "0")
        if not given.isdecimal():
            raise invalid("Lorafleet-Epoch must be a whole number", "Lorafleet-Epoch")
        if int(given) < self.epoch:
            message = f"epoch {given} is over; this replica has taken orders of epoch {self.epoch}"
            raise ApiError(409, message, "stale_epoch", "Lorafleet-Epoch")
        self.epoch = int(given)


def create_admin_app(service: Service, fence: Fence | None = None) -> FastAPI:
    """The app of the admin port. `fence` is that of the port's earlier app, if it had one."""
    app = new_app("lorafleet runtime, admin")
    token = service.settings.admin_token
    fence = fence or Fence()

    def ordered(handler: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
        """An order of the operator: authorised, and fenced by epoch."""

        async def guarded(request: Request) -> Response:
            authorize(request, token)
            fence.admit(request)
            return await handler(service, request)

        return guarded

    app.add_api_route("/admin/adapters/{adapter}", ordered(put), methods=["PUT"], response_model=None)
    app.add_api_route("/admin/adapters/{adapter}", ordered(delete), methods=["DELETE"], response_model=None)
    app.add_api_route("/admin/drain", ordered(_drain), methods=["POST"], response_model=None)

    @app.get("/admin/state")
    async def state(request: Request) -> Response:
        authorize(request, token)
        versions = (service.engine.version, service.adapters.version, fence.epoch, int(service.draining))
        etag = f'"{service.incarnation}-{"-".join(map(str, versions))}"'
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers={"ETag": etag})
        return json_response(200, _state(service, fence.epoch), {"ETag": etag})

    @app.get("/admin/tenants")
    async def tenants_of(request: Request) -> Response:
        authorize(request, token)
        return Response(tenants(service), media_type="application/json")

    @app.post("/admin/artifacts/describe")
    async def describe(request: Request) -> Response:
        """Orders nothing, so no epoch fences it."""
        authorize(request, token)
        return await _describe(service, parse(DescribeBody, await read_body(request)))

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200)

    @app.post("/v1/load_lora_adapter")
    async def load_lora_adapter(request: Request) -> Response:
        authorize(request, token)
        return await vllm_load(service, parse(LoadBody, await read_body(request)))

    @app.post("/v1/unload_lora_adapter")
    async def unload_lora_adapter(request: Request) -> Response:
        authorize(request, token)
        return await vllm_unload(service, parse(UnloadBody, await read_body(request)))

    return app


async def _drain(service: Service, request: Request) -> Response:
    service.draining = True
    return json_response(202, {"phase": service.phase, "openRequests": service.open_requests})


async def _describe(service: Service, body: DescribeBody) -> Response:
    files = await service.volumes.describe(body.path)
    if files is None:
        return json_response(202, {"state": "Reading"})
    fields = ("name", "url", "sha256", "size")
    return json_response(200, {"files": [{name: getattr(file, name) for name in fields} for file in files]})


def _state(service: Service, epoch: int) -> dict[str, Any]:
    state = service.engine.state
    adapters = [msgspec.to_builtins(adapter) for adapter in service.adapters.states()]
    for adapter in adapters:
        adapter.pop("targets", None)
    body = report(state, service.incarnation, epoch, service.phase)
    if body["model"] is not None:
        body["model"] = {"servedName": service.settings.served_name, **body["model"]}
    return {**body, "adapters": adapters}


def report(state: EngineState, incarnation: str, epoch: int, phase: str, wants: str = "") -> dict[str, Any]:
    """`GET /admin/state` of a replica without adapters. `wants` is what it waits for from the operator."""
    model = None
    if state.model is not None:
        model = msgspec.to_builtins(state.model)
        model.pop("vocabSize")
    return {
        "version": 1,
        "incarnation": incarnation,
        "epoch": epoch,
        "phase": phase,
        "wants": wants,
        "message": state.message,
        "progress": state.progress,
        "model": model,
        "pages": msgspec.to_builtins(state.pages),
        "host": msgspec.to_builtins(state.host),
        "load": msgspec.to_builtins(state.load),
        "counters": msgspec.to_builtins(state.counters),
        "adapters": [],
    }
