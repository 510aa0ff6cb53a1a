"""A client's request to a replica and the answer back, streamed or whole; the one place where bytes flow.

Back-pressure is the ASGI server's: `send` waits while the client does not read, then nobody reads from the
replica, and TCP makes it wait. A client that leaves cancels everything at once.

A whole answer is asked for whole, and after a loss asked for again from its beginning: nothing of it was
delivered, so there is no seam to hide. Streaming it inside would save the work done, at the price of putting
texts, logprobs and tool calls together again here."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
import structlog
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from lorafleet_gateway.access import CLIENT_GONE, RequestRecord
from lorafleet_gateway.client_request import ClientRequest
from lorafleet_gateway.config import Limits
from lorafleet_gateway.core.fleet_model import Tenant
from lorafleet_gateway.core.naming import Target
from lorafleet_gateway.core.routing import Choice
from lorafleet_gateway.errors import ApiError, AttemptFailed, Lost, replica_failed
from lorafleet_gateway.fleet import FleetFolder
from lorafleet_gateway.loads import Loads
from lorafleet_gateway.metrics import Metrics
from lorafleet_gateway.placing import Placing
from lorafleet_gateway.quotas import Quotas, Ticket
from lorafleet_gateway.resume import StreamTracker, usage_in
from lorafleet_gateway.suspects import SuspectLines
from lorafleet_gateway.upstream import HttpAttempt, Upstream

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold chunks back
]
_decode_answer = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@dataclass(frozen=True, slots=True)
class Services:
    """What every relay shares."""

    fleet: FleetFolder
    upstream: Upstream
    loads: Loads
    limits: Limits
    metrics: Metrics
    quotas: Quotas
    lines: SuspectLines


class Relay(Response):
    """The answer to one resolved request. Errors before its first byte are raised as ApiError, later ones are
    its last event."""

    def __init__(
        self,
        services: Services,
        request: ClientRequest,
        target: Target,
        tenant: Tenant,
        ticket: Ticket,
        record: RequestRecord,
        trace: dict[str, str],
    ) -> None:
        self._services = services
        self._request = request
        self._target = target
        self._ticket = ticket
        self._record = record
        self._outbound = {
            **trace,
            "Lorafleet-Tenant": tenant.name,
            "Lorafleet-Weight": f"{tenant.weight:g}",
            "Lorafleet-Request-Id": record.id,
        }
        seed = int(record.id[:16], 16)
        self._placing = Placing(
            target, services.fleet, services.loads, services.limits, services.lines, time.monotonic, seed
        )
        self._started = False
        self._logged = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._stream(send) if self._request.stream else self._whole(send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                await work
            else:
                self._record.code = CLIENT_GONE
        except ApiError as error:
            raise error.renamed(self._target.wire_name, self._target.served_name) from None
        except asyncio.CancelledError:
            if self._started and not work.done():
                work.cancel()
                await self._fail(send, ApiError(503, "The gateway is stopping; ask again.", "gateway_stopping"))
            raise
        finally:
            for task in (work, gone):
                task.cancel()
            try:
                await asyncio.gather(work, gone, return_exceptions=True)
            finally:
                self._ticket.close()
                self._placing.close()

    async def _whole(self, send: Send) -> None:
        body = self._request.upstream_body(self._target.wire_name)
        while True:
            choice = await self._placing.next()
            attempt = self._attempt(choice, body)
            try:
                with self._services.loads.hold(self._target.base, choice.replica, attempt):
                    async with self._entered(attempt):
                        answer = self._rename(await attempt.read_all())
            except AttemptFailed as failure:
                self._failed(choice, failure)
                continue
            self._ticket.close()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": answer})
            return

    async def _stream(self, send: Send) -> None:
        request = self._request
        tracker = StreamTracker(
            request.model,
            single=request.single,
            keep_token_ids=request.wants_token_ids,
            wants_usage=request.wants_usage,
            event_bytes=self._services.limits.event_bytes,
        )
        try:
            while not tracker.done:
                choice = await self._placing.next()
                if self._started:
                    self._record.resumes += 1
                    self._services.metrics.resumes.labels(self._record.base_model).inc()
                try:
                    await self._stream_from(choice, tracker, send)
                except AttemptFailed as failure:
                    self._failed(choice, failure)
                    if self._started and not request.single:
                        why = f"{failure}; an answer with several choices cannot be resumed"
                        raise replica_failed(request.model, why) from None
                finally:
                    self._record.tokens = len(tracker.output_token_ids)
                    self._ticket.used = tracker.used
        except ApiError as error:
            if not self._started:
                raise
            self._ticket.close()
            await self._fail(send, error.renamed(self._target.wire_name, request.model))

    async def _stream_from(self, choice: Choice, tracker: StreamTracker, send: Send) -> None:
        body = self._request.upstream_body(self._target.wire_name, tracker.output_token_ids)
        attempt = self._attempt(choice, body)
        tracker.begin()
        before = len(tracker.output_token_ids)
        with self._services.loads.hold(self._target.base, choice.replica, attempt):
            async with self._entered(attempt):
                while not tracker.done:
                    events = await _next_events(attempt, tracker)
                    if tracker.done:  # before the client has its last byte, or its next request finds this one running
                        self._ticket.used = tracker.used
                        self._ticket.close()
                    if events:
                        await self._send(send, events, choice, more=not tracker.done)
                    if tracker.advanced:
                        self._placing.progressed(len(tracker.output_token_ids) - before)
                    if tracker.failure is not None:
                        raise tracker.failure
                await attempt.settle()

    async def _send(self, send: Send, events: bytes, choice: Choice, *, more: bool) -> None:
        if not self._started:
            self._started = True
            self._placing.begun(choice)
            await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        await send({"type": "http.response.body", "body": events, "more_body": more})

    @contextlib.asynccontextmanager
    async def _entered(self, attempt: HttpAttempt) -> AsyncIterator[None]:
        """The attempt under way. Whoever gives up while it is being sent has reached the replica, as far as anybody
        knows; only its answer can say that it did not take the request."""
        before, self._ticket.reached = self._ticket.reached, True
        try:
            async with attempt:
                before = True
                yield
        except (AttemptFailed, ApiError) as failure:
            self._ticket.reached = before or (isinstance(failure, Lost) and failure.accepted)
            raise

    async def _fail(self, send: Send, error: ApiError) -> None:
        self._record.code = error.status
        self._record.error = error.code
        await send({"type": "http.response.body", "body": b"data: " + error.body() + b"\n\n", "more_body": False})

    def _attempt(self, choice: Choice, body: bytes) -> HttpAttempt:
        self._record.attempts += 1
        self._record.replica = choice.replica.name
        return self._services.upstream.attempt(choice.replica, self._request.path, body, self._outbound)

    def _failed(self, choice: Choice, failure: AttemptFailed) -> None:
        kind = type(failure).__name__
        self._services.metrics.upstream_errors.labels(self._record.base_model, kind).inc()
        if str(failure) != self._logged:  # a replica that stays away is tried often; it is news once
            self._logged = str(failure)
            structlog.get_logger("lorafleet_gateway.relay").warning(
                "attempt failed", id=self._record.id, replica=choice.replica.name, kind=kind, why=self._logged
            )
        self._placing.failed(choice, failure)

    def _rename(self, answer: bytes) -> bytes:
        try:
            fields = _decode_answer(answer)
        except msgspec.DecodeError as error:
            raise Lost(f"replica {self._record.replica} sent no JSON object: {error}", accepted=True) from None
        usage = usage_in(fields)
        self._ticket.used = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
        return msgspec.json.encode({**fields, "model": self._request.model})


async def _next_events(attempt: HttpAttempt, tracker: StreamTracker) -> bytes:
    try:
        data = await attempt.read()
    except Lost as failure:
        events = tracker.end()  # after its last token a broken connection is as good as an orderly end
        if not tracker.done:
            tracker.failure = failure
        return events
    return tracker.feed(data) if data else tracker.end()


async def _disconnected(receive: Receive) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()
