"""Puts one job on one connection: events, or one body. A client that leaves ends its generation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from lorafleet_runtime import __version__
from lorafleet_runtime.errors import ApiError, ClientGone, EngineDead
from lorafleet_runtime.frontend.chunks import Writer, error_event
from lorafleet_runtime.frontend.detokenize import Piece
from lorafleet_runtime.frontend.intake import Job
from lorafleet_runtime.frontend.runs import Run
from lorafleet_runtime.frontend.service import Service
from lorafleet_runtime.frontend.web import CLIENT_CLOSED


async def answer(job: Job, service: Service, request: Request) -> Response:
    """The response to a job. What fails before the first byte raises ApiError; later it becomes an event."""
    run = Run(job, service)
    watch = asyncio.create_task(_watch_client(run, request.receive))
    fingerprint = f"lorafleet-{__version__}-{service.settings.served_name}"
    writer = Writer(job, run.choices, service.tokenizer.bytes, fingerprint)
    streams = False
    try:
        await run.start()
        if job.stream:
            streams = True
            return _EventStream(run, writer, watch)
        return Response(await _whole(run, writer), media_type="application/json")
    except ClientGone:
        return Response(status_code=CLIENT_CLOSED)
    except EngineDead as error:
        raise _engine_failed(error) from None
    finally:
        if not streams:
            run.close()
            watch.cancel()


class _EventStream(Response):
    def __init__(self, run: Run, writer: Writer, watch: asyncio.Task[None]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(None, headers=headers, media_type="text/event-stream")
        del self.headers["content-length"]
        self._run = run
        self._writer = writer
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for data in _events(self._run, self._writer):
                await send(_body(data, more=True))
            await send(_body(b"", more=False))
        except (ClientGone, OSError):
            return
        finally:
            self._run.close()
            self._watch.cancel()


async def _events(run: Run, writer: Writer) -> AsyncIterator[bytes]:
    opened: set[int] = set()
    try:
        async for updates in run.updates():
            parts = []
            for update in updates:
                if update.index not in opened:
                    opened.add(update.index)
                    parts.append(writer.opening(update.index))
                parts.append(writer.update(update))
            if data := b"".join(parts):
                yield data
    except EngineDead as error:
        yield error_event(_engine_failed(error))
    except ApiError as error:
        yield error_event(error)
    else:
        yield writer.closing()


async def _whole(run: Run, writer: Writer) -> bytes:
    pieces: list[list[Piece]] = [[] for _ in run.choices]
    async for updates in run.updates():
        for update in updates:
            pieces[update.index].append(update.piece)
    return writer.whole([_concatenated(parts) for parts in pieces])


def _concatenated(parts: list[Piece]) -> Piece:
    return Piece(
        "".join(part.text for part in parts),
        [token_id for part in parts for token_id in part.token_ids],
        [token for part in parts for token in part.logprobs],
        [offset for part in parts for offset in part.offsets],
    )


async def _watch_client(run: Run, receive: Receive) -> None:
    """The body has been read, so the next message is that the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    run.fail(ClientGone())


def _body(data: bytes, more: bool) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def _engine_failed(error: EngineDead) -> ApiError:
    return ApiError(503, f"the engine failed: {error}", "engine_failed", retry_after=1)
