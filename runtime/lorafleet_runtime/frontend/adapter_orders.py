"""Orders about adapters: the operator's PUT and DELETE, and vLLM's two calls, with its texts."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from lorafleet_runtime.core.adapter_room import why_no_room
from lorafleet_runtime.errors import ApiError, ArtifactError, invalid
from lorafleet_runtime.frontend.admin_schemas import AdapterBody, LoadBody, UnloadBody
from lorafleet_runtime.frontend.artifact_files import ArtifactFile, revision_of
from lorafleet_runtime.frontend.artifacts import read_folder
from lorafleet_runtime.frontend.schemas import parse
from lorafleet_runtime.frontend.service import Service
from lorafleet_runtime.frontend.web import json_response, read_body
from lorafleet_runtime.protocol import AdapterState

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_MAX_WAIT_SECONDS = 600.0
_LOAD_SECONDS = 300.0
_ERRORS = {
    "DigestMismatch": (409, "digest_mismatch"),
    "InvalidAdapter": (422, "invalid_adapter"),
    "RankTooHigh": (422, "rank_too_high"),
    "FetchFailed": (502, "fetch_failed"),
    "DiskFull": (507, "disk_full"),
    "NoRoom": (507, "no_room"),
}


async def put(service: Service, request: Request) -> Response:
    """`PUT /admin/adapters/{id}`: load a revision, and with `wait` say what came of it. Raises ApiError."""
    adapter = _checked_id(service, request.path_params["adapter"])
    wait = _wait_seconds(request)
    body = parse(AdapterBody, await read_body(request))
    files = [ArtifactFile(f.name, f.url, f.sha256, f.size, f.authorization) for f in body.files]
    if body.pinned:
        _refuse_to_pin_beyond_the_pool(service, adapter, body.revision)
    service.adapters.put(adapter, body.revision, files, body.pinned)
    if wait is None:
        state = service.adapters.find(adapter, body.revision)
        reported = state.state if state is not None and state.state == "Ready" else "Loading"
        return json_response(202, {"id": adapter, "revision": body.revision, "state": reported})
    outcome = await service.adapters.wait(adapter, body.revision, wait)
    return json_response(*_outcome(adapter, body.revision, outcome))


async def delete(service: Service, request: Request) -> Response:
    """`DELETE /admin/adapters/{id}`: 204 when it is gone, 202 while requests hold it."""
    adapter = request.path_params["adapter"]
    gone = await service.adapters.delete(adapter)
    return Response(status_code=204) if gone else json_response(202, {"id": adapter, "state": "Draining"})


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


async def vllm_load(service: Service, body: LoadBody) -> Response:
    """`POST /v1/load_lora_adapter`: from a folder of this machine. Raises ApiError with vLLM's words."""
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


async def vllm_unload(service: Service, body: UnloadBody) -> Response:
    """`POST /v1/unload_lora_adapter`. Raises ApiError 404 for a name that is not there."""
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


def _refuse_to_pin_beyond_the_pool(service: Service, adapter: str, revision: str) -> None:
    """Pinned adapters that leave no full context would stop every request. Raises ApiError 507 `no_room`.

    One that is not loaded yet is refused by the engine, which learns its pages."""
    engine = service.engine.state
    found = service.adapters.find(adapter, revision)
    if found is None or found.state != "Ready" or found.pinned or engine.pages is None or engine.model is None:
        return
    why = why_no_room(
        adapter, found.pages, pinned=service.adapters.pinned_pages(but=adapter),
        total=engine.pages.total, page_bytes=engine.pages.bytes, max_model_len=engine.model.max_model_len,
    )  # fmt: skip
    if why:
        raise ApiError(507, f"it cannot be pinned: {why}", "no_room", "pinned")


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
