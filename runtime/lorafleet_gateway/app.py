"""The gateway's routes: who calls, what the name means, and off to the relay. Knows nothing of replicas'
answers."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lorafleet_gateway.access import CLIENT_GONE, AccessLog, record_of
from lorafleet_gateway.client_request import parse, read_body, trace_headers
from lorafleet_gateway.config import Limits
from lorafleet_gateway.core.fleet_model import Tenant
from lorafleet_gateway.core.naming import ListedModel, Target, list_models, resolve
from lorafleet_gateway.errors import ApiError, invalid_api_key, model_not_found, model_not_ready
from lorafleet_gateway.exchange import Exchange
from lorafleet_gateway.fleet import FleetFolder
from lorafleet_gateway.loads import Loads
from lorafleet_gateway.metrics import CONTENT_TYPE, Metrics
from lorafleet_gateway.mirror import Mirror
from lorafleet_gateway.placing import RETRY_AFTER
from lorafleet_gateway.quotas import Quotas
from lorafleet_gateway.relay import Relay, Services
from lorafleet_gateway.suspects import SuspectLines
from lorafleet_gateway.upstream import Upstream


def create_app(
    fleet: FleetFolder, *, token: str = "", limits: Limits | None = None, mirror: Mirror | None = None
) -> Starlette:
    """The ASGI app over `fleet`, which it reads before its first request and watches while it runs
    (lifespan).

    `token` is the replicas' serving token; `mirror` fills the folder from a cluster.
    """
    limits = limits or Limits()
    loads = Loads(time.monotonic, limits.avoid_seconds)
    metrics = Metrics()
    quotas = Quotas(secrets.token_hex(8), metrics, time.monotonic)
    services = Services(fleet, Upstream(token, limits), loads, limits, metrics, quotas, SuspectLines())
    quotas.follow(fleet.tenants.by_name)  # what was read before; `on_change` tells the rest
    exchange = Exchange(services)
    fleet.on_change += [lambda: loads.follow(fleet.fleet), lambda: quotas.follow(fleet.tenants.by_name)]
    if mirror is not None:
        mirror.changed, fleet.told_all = fleet.hurry, lambda: mirror.listed

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        fleet.refresh()
        await services.upstream.start()
        watchers = [
            asyncio.create_task(fleet.watch()),
            *([asyncio.create_task(mirror.run())] if mirror is not None else []),
            asyncio.create_task(exchange.run()),
        ]
        try:
            yield
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            await services.upstream.close()

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", _complete, methods=["POST"]),
            Route("/v1/completions", _complete, methods=["POST"]),
            Route("/v1/models", _models),
            Route("/v1/models/{model:path}", _model),
            Route("/health", _health),
            Route("/ready", _ready),
            Route("/metrics", _metrics),
        ],
        middleware=[Middleware(AccessLog, metrics=services.metrics)],
        exception_handlers={
            ApiError: _answer_api_error,
            ClientDisconnect: _answer_nobody,
            HTTPException: _answer_http_error,
            Exception: _answer_bug,
        },
        lifespan=lifespan,
    )
    app.state.services = services
    return app


async def _complete(request: Request) -> Response:
    services = _services(request)
    tenant = _authenticate(request)
    ticket = services.quotas.enter(tenant.name)
    try:
        length = request.headers.get("content-length")
        body = await read_body(request.stream(), length, services.limits.body_bytes)
        asked = parse(request.url.path, body)
        target = _resolve(request, asked.model, tenant)
        ticket.reserve(asked.fields)
    except BaseException:  # also a client that leaves: a ticket that nobody closes would count for ever
        ticket.close()
        raise
    record = record_of(request.scope)
    return Relay(services, asked, target, tenant, ticket, record, trace_headers(request.scope["headers"]))


async def _models(request: Request) -> Response:
    tenant = _authenticate(request)
    models = list_models(tenant, _services(request).fleet.fleet)
    return JSONResponse({"object": "list", "data": [_describe(model, tenant) for model in models if model.ready]})


async def _model(request: Request) -> Response:
    tenant = _authenticate(request)
    name: str = request.path_params["model"]
    for model in list_models(tenant, _services(request).fleet.fleet):
        if model.served_name == name:
            if not model.ready:
                raise model_not_ready(name, "no ready replica holds it", RETRY_AFTER)
            return JSONResponse(_describe(model, tenant))
    raise model_not_found(name)


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _ready(request: Request) -> Response:
    if not _services(request).fleet.ready:
        raise _not_ready()
    return JSONResponse({"status": "ready"})


async def _metrics(request: Request) -> Response:
    return Response(_services(request).metrics.render(), headers={"content-type": CONTENT_TYPE})


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _authenticate(request: Request) -> Tenant:
    fleet = _services(request).fleet
    if not fleet.ready:
        raise _not_ready()
    tenant = fleet.tenants.authenticate(request.headers.get("authorization"))
    if tenant is None:
        raise invalid_api_key()
    record_of(request.scope).tenant = tenant.name
    return tenant


def _resolve(request: Request, model: str, tenant: Tenant) -> Target:
    target = resolve(model, tenant, _services(request).fleet.fleet)
    if target is None:
        raise model_not_found(model)
    record = record_of(request.scope)
    record.model = target.served_name
    record.base_model = "/".join(target.base)
    return target


def _not_ready() -> ApiError:
    message = "The gateway has not read its fleet and tenants documents yet; the operator writes them."
    return ApiError(503, message, "not_ready", retry_after=RETRY_AFTER)


def _describe(model: ListedModel, tenant: Tenant) -> dict[str, object]:
    return {
        "id": model.served_name,
        "object": "model",
        "created": 0,  # unknown, and so the same from every gateway at any time
        "owned_by": tenant.name if model.parent else "lorafleet",
        "root": model.served_name,
        "parent": model.parent,
        "max_model_len": model.max_model_len,
    }


def _answer(request: Request, error: ApiError) -> Response:
    if request.url.path.startswith("/v1"):
        record_of(request.scope).error = error.code
    return Response(error.body(), status_code=error.status, headers=error.headers())


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _answer(request, error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    line = f"{request.method} {request.url.path}"
    if error.status_code == HTTPStatus.NOT_FOUND:
        return _answer(request, ApiError(404, f"There is no route {line}.", "unknown_url"))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        refused = ApiError(405, f"{line} is not allowed; this route takes {allowed}.", "method_not_allowed")
        response = _answer(request, refused)
        response.headers["allow"] = allowed
        return response
    return _answer(request, ApiError(error.status_code, str(error.detail), "http_error"))


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)  # it left in the middle of its body; the status is for our own books


async def _answer_bug(request: Request, error: Exception) -> Response:
    return _answer(request, ApiError(500, "The gateway failed; its log says why.", "internal_error"))
