"""What the serving and the admin port have in common: errors as JSON, bearer tokens, bounded bodies."""

from __future__ import annotations

import hmac
from typing import Any

import msgspec
import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from lorafleet_runtime import __version__
from lorafleet_runtime.errors import ApiError

MAX_BODY_BYTES = 8 * 2**20
CLIENT_CLOSED = 499
"""nginx's number, for the log; the client that it is for has gone."""

log = structlog.get_logger("runtime")


def new_app(title: str) -> FastAPI:
    """An app whose every error has the one JSON shape."""
    app = FastAPI(title=title, version=__version__, openapi_url=None)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_client_gone)
    app.add_exception_handler(Exception, _on_bug)
    return app


def authorize(request: Request, token: str) -> None:
    """Raises ApiError 401 unless the request carries `token`; an empty token means that the port is open."""
    if not token:
        return
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        raise ApiError(401, "send the right token as Authorization: Bearer TOKEN", "invalid_api_key")


async def read_body(request: Request) -> bytes:
    """The whole body. Raises ApiError 413 beyond 8 MiB, before it is read where its length is announced."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def error_response(error: ApiError) -> Response:
    """The JSON answer that an ApiError stands for."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else None
    return JSONResponse(error.body(), error.status, headers)


def json_response(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    """An answer with a JSON body, of anything that msgspec can encode."""
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def _too_large() -> ApiError:
    return ApiError(413, f"the body is larger than {MAX_BODY_BYTES} bytes", "request_too_large")


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path}: {error.detail}"
    return error_response(ApiError(error.status_code, message, code))


async def _on_client_gone(request: Request, error: Exception) -> Response:
    """It left before its body was whole."""
    return Response(status_code=CLIENT_CLOSED)


async def _on_bug(request: Request, error: Exception) -> Response:
    log.error("a request failed unexpectedly", path=request.url.path, exc_info=error)
    return error_response(ApiError(500, "internal error; the server's log has the details", "internal_error"))
