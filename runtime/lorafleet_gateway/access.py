"""One record per client request, and from it one log line and the metrics. Never a key, a prompt or a
client's own name for a model that does not exist."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorafleet_gateway.metrics import UNKNOWN, Metrics

CLIENT_GONE = 499
BUG = 500  # nothing answered: an exception is on its way up
_KEY = "lorafleet.record"


@dataclass(slots=True)
class RequestRecord:
    """What is known of a request so far. `code` is the status, or what became of the answer after it had
    begun."""

    started: float
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    code: int = 0
    tenant: str = ""
    model: str = ""
    base_model: str = ""
    replica: str = ""
    first_byte: float | None = None
    attempts: int = 0
    resumes: int = 0
    tokens: int = 0
    error: str = ""


def record_of(scope: Scope) -> RequestRecord:
    """The record of the request that `scope` belongs to."""
    record: RequestRecord = scope[_KEY]
    return record


class AccessLog:
    """ASGI middleware around the `/v1/` routes; it adds `x-request-id` to their answers."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._log = structlog.get_logger("lorafleet_gateway.access")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1"):
            await self._app(scope, receive, send)
            return
        record = scope[_KEY] = RequestRecord(time.monotonic())

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.code = record.code or message["status"]
                record.first_byte = time.monotonic()
                message["headers"] = [*message["headers"], (b"x-request-id", record.id.encode())]
            await send(message)

        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, watched)
            finally:
                self._close(record, scope)

    def _close(self, record: RequestRecord, scope: Scope) -> None:
        now = time.monotonic()
        record.code = record.code or BUG
        tenant, model = record.tenant or UNKNOWN, record.model or UNKNOWN
        label = self._metrics.model_label(tenant, model)
        self._metrics.requests.labels(tenant, label, str(record.code)).inc()
        if record.base_model:
            self._metrics.duration.labels(record.base_model).observe(now - record.started)
            if record.first_byte is not None:
                self._metrics.first_byte.labels(record.base_model).observe(record.first_byte - record.started)
        extra = {
            "replica": record.replica,
            "first_byte_ms": round((record.first_byte - record.started) * 1000, 1) if record.first_byte else None,
            "attempts": record.attempts,
            "resumes": record.resumes,
            "tokens": record.tokens,
            "error": record.error,
        }
        self._log.info(
            "request",
            id=record.id,
            method=scope["method"],
            path=scope["path"],
            code=record.code,
            ms=round((now - record.started) * 1000, 1),
            tenant=tenant,
            model=model,
            **{name: value for name, value in extra.items() if value},
        )
