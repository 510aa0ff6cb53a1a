"""The admin port: what the operator orders, what this replica reports; vLLM's two calls, with its texts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from lorafleet_runtime.errors import ApiError, ArtifactError, invalid
from lorafleet_runtime.frontend.admin_schemas import AdapterBody, DescribeBody, LoadBody, UnloadBody
from lorafleet_runtime.frontend.artifact_files import ArtifactFile, revision_of
from lorafleet_runtime.frontend.artifacts import read_folder
from lorafleet_runtime.frontend.fairness_exchange import tenants
from lorafleet_runtime.frontend.schemas import parse
from lorafleet_runtime.frontend.service import Service
from lorafleet_runtime.frontend.web import authorize, new_app, read_body
from lorafleet_runtime.protocol import AdapterState, EngineState

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_MAX_WAIT_SECONDS = 600.0
_LOAD_SECONDS = 300.0
_ERRORS = {
    "DigestMismatch": (409, "digest_mismatch"),
    "InvalidAdapter": (422, "invalid_adapter"),
    "RankTooHigh": (422, "rank_too_high"),
    "FetchFailed": (502, "fetch_failed"),
    "NoRoom": (507, "no_room"),
}


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

    app.add_api_route("/admin/adapters/{adapter}", ordered(_put), methods=["PUT"], response_model=None)
    app.add_api_route("/admin/adapters/{adapter}", ordered(_delete), methods=["DELETE"], response_model=None)
    app.add_api_route("/admin/drain", ordered(_drain), methods=["POST"], response_model=None)

    @app.get("/admin/state")
    async def state(request: Request) -> Response:
        authorize(request, token)
        versions = (service.engine.version, service.adapters.version, fence.epoch, int(service.draining))
        etag = f'"{service.incarnation}-{"-".join(map(str, versions))}"'
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers={"ETag": etag})
        return _json(200, _state(service, fence.epoch), {"ETag": etag})

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
        return await _vllm_load(service, parse(LoadBody, await read_body(request)))

    @app.post("/v1/unload_lora_adapter")
    async def unload_lora_adapter(request: Request) -> Response:
        authorize(request, token)
        return await _vllm_unload(service, parse(UnloadBody, await read_body(request)))

    return app


async def _put(service: Service, request: Request) -> Response:
    adapter = _checked_id(service, request.path_params["adapter"])
    wait = _wait_seconds(request)
    body = parse(AdapterBody, await read_body(request))
    files = [ArtifactFile(f.name, f.url, f.sha256, f.size, f.authorization) for f in body.files]
    service.adapters.put(adapter, body.revision, files, body.pinned)
    if wait is None:
        state = service.adapters.find(adapter, body.revision)
        reported = state.state if state is not None and state.state == "Ready" else "Loading"
        return _json(202, {"id": adapter, "revision": body.revision, "state": reported})
    outcome = await service.adapters.wait(adapter, body.revision, wait)
    return _json(*_outcome(adapter, body.revision, outcome))


async def _delete(service: Service, request: Request) -> Response:
    adapter = request.path_params["adapter"]
    gone = await service.adapters.delete(adapter)
    return Response(status_code=204) if gone else _json(202, {"id": adapter, "state": "Draining"})


async def _drain(service: Service, request: Request) -> Response:
    service.draining = True
    return _json(202, {"phase": service.phase, "openRequests": service.open_requests})


async def _describe(service: Service, body: DescribeBody) -> Response:
    files = await service.volumes.describe(body.path)
    if files is None:
        return _json(202, {"state": "Reading"})
    fields = ("name", "url", "sha256", "size")
    return _json(200, {"files": [{name: getattr(file, name) for name in fields} for file in files]})


def _outcome(adapter: str, revision: str, state: AdapterState | None) -> tuple[int, dict[str, Any]]:
    if state is None:
        message = f"a newer order for adapter {adapter} replaced this one"
        raise ApiError(409, message, "superseded")
    if state.state == "Failed":
        status, code = _ERRORS.get(state.reason, (422, "invalid_adapter"))
        raise ApiError(status, state.message or state.reason, code)
    body: dict[str, Any] = {"id": adapter, "revision": revision, "state": state.state}
    if state.state != "Ready":
        return 202, body
    return 200, body | {
        "rank": state.rank,
        "pages": state.pages,
        "bytes": state.bytes,
        "targets": state.targets,
    }


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
        "load": msgspec.to_builtins(state.load),
        "counters": msgspec.to_builtins(state.counters),
        "adapters": [],
    }


async def _vllm_load(service: Service, body: LoadBody) -> Response:
    name = body.lora_name
    if not name or not body.lora_path:
        raise invalid("Both 'lora_name' and 'lora_path' must be provided.", "lora_name")
    _checked_id(service, name, "lora_name")
    if not body.load_inplace and any(s.state in ("Ready", "Loading") for s in service.adapters.of(name)):
        raise invalid(
            f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, "
            "set 'load_inplace' to True.",
            "lora_name",
        )
    try:
        files = await asyncio.to_thread(read_folder, Path(body.lora_path))
    except ArtifactError as error:
        message = f"Loading lora {name} failed: No adapter found for {body.lora_path}: {error.message}"
        raise ApiError(404, message, "not_found", "lora_path") from None
    revision = revision_of(files)
    service.adapters.put(name, revision, files, pinned=False)
    status, _ = _outcome(name, revision, await service.adapters.wait(name, revision, _LOAD_SECONDS))
    if status != 200:
        message = f"The lora adapter '{name}' is still being loaded."
        raise ApiError(503, message, "adapter_loading", retry_after=1)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


async def _vllm_unload(service: Service, body: UnloadBody) -> Response:
    name = body.lora_name
    if not name:
        raise invalid("'lora_name' needs to be provided to unload a LoRA adapter.", "lora_name")
    if not service.adapters.of(name):
        raise ApiError(404, f"The lora adapter '{name}' cannot be found.", "not_found", "lora_name")
    await service.adapters.delete(name)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


def _checked_id(service: Service, adapter: str, param: str = "id") -> str:
    if not _ID.fullmatch(adapter):
        raise invalid(f"{adapter!r:.80} is not an adapter id: letters, digits, dot, dash, underscore", param)
    if adapter == service.settings.served_name:
        raise invalid(f"{adapter!r} is the base model's name", param)
    return adapter


def _wait_seconds(request: Request) -> float | None:
    given = request.query_params.get("wait")
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MAX_WAIT_SECONDS:
        raise invalid(f"wait must be seconds in 0..{_MAX_WAIT_SECONDS:g}", "wait")
    return seconds


def _json(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")
