"""The serving port: OpenAI's routes over one base model and its adapters."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lorafleet_runtime.errors import ApiError
from lorafleet_runtime.frontend.fairness_exchange import exchange
from lorafleet_runtime.frontend.intake import chat_job, completion_job
from lorafleet_runtime.frontend.schemas import ChatRequest, CompletionRequest, parse
from lorafleet_runtime.frontend.service import Service
from lorafleet_runtime.frontend.streaming import answer
from lorafleet_runtime.frontend.web import authorize, error_response, new_app, read_body


def create_app(service: Service) -> FastAPI:
    """The app of the serving port."""
    app = new_app("lorafleet runtime")
    token = service.settings.serving_token

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        authorize(request, token)
        parsed = parse(ChatRequest, await read_body(request))
        return await answer(await chat_job(parsed, service, request.headers), service, request)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        authorize(request, token)
        parsed = parse(CompletionRequest, await read_body(request))
        return await answer(await completion_job(parsed, service, request.headers), service, request)

    if token:

        @app.post("/fairness")
        async def fairness(request: Request) -> Response:
            authorize(request, token)
            answer = exchange(service, await read_body(request), time.monotonic())
            return Response(answer, media_type="application/json")

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        authorize(request, token)
        return JSONResponse({"object": "list", "data": _models(service)})

    @app.get("/v1/models/{model}")
    async def model(request: Request, model: str) -> Response:
        authorize(request, token)
        for entry in _models(service):
            if entry["id"] == model:
                return JSONResponse(entry)
        raise ApiError(404, f"the model {model!r} does not exist", "model_not_found", "model")

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200)

    @app.get("/ready")
    async def ready() -> Response:
        try:
            service.require_ready()
        except ApiError as error:
            return error_response(error)
        return Response(status_code=200)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _models(service: Service) -> list[dict[str, Any]]:
    """The base model, then every adapter that can be asked for now."""
    name = service.settings.served_name
    facts = service.engine.state.model
    common = {
        "object": "model",
        "created": service.started,
        "owned_by": "lorafleet",
        "max_model_len": facts.max_model_len if facts else None,
    }
    ready = sorted({state.id for state in service.adapters.states() if state.state == "Ready"})
    return [
        {"id": name, **common, "root": name, "parent": None},
        *({"id": adapter, **common, "root": adapter, "parent": name} for adapter in ready),
    ]
