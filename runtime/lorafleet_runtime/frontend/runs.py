"""One job while it runs: its requests in the engine, its choices, the updates they make. Knows no HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

from lorafleet_runtime.errors import ApiError, EngineDead, LorafleetError
from lorafleet_runtime.frontend.choices import Choice, Update
from lorafleet_runtime.frontend.engine_api import Stream
from lorafleet_runtime.frontend.intake import Job
from lorafleet_runtime.frontend.service import Service
from lorafleet_runtime.protocol import Delta


class Run:
    """Call `start`, read `updates` to their end, and `close` in any case."""

    def __init__(self, job: Job, service: Service) -> None:
        self.job = job
        table, clock = service.tokenizer.bytes, service.metrics.request
        self.choices = [
            Choice(job, index, table, clock(len(request.prompt_token_ids)))
            for index, request in enumerate(job.requests)
        ]
        self._by_id = {choice.request.request_id: choice for choice in self.choices}
        self._service = service
        self._first: list[Update] = []
        # What a resumed request already has may be all there is; then the engine is not asked.
        ended = self.choices[0].resume() if job.resumed is not None else None
        if ended is not None:
            self._first = [ended]
        self._stream = self._submit(ended is None)
        self._open = True
        service.open_requests += 1

    async def start(self) -> None:
        """Wait for the first sign of life: an early failure can still have a status. Raises ApiError."""
        if not self._first:
            self._first = self._take(await self._stream.next())

    async def updates(self) -> AsyncIterator[list[Update]]:
        """What comes, until every choice has ended. Raises ApiError, EngineDead, or `fail`'s error."""
        updates = self._first
        while True:
            yield updates
            if all(choice.finish_reason is not None for choice in self.choices):
                return
            updates = self._take(await self._stream.next())

    def fail(self, error: LorafleetError) -> None:
        """Make whoever waits for updates get `error` instead."""
        self._stream.fail(error)

    def close(self) -> None:
        """Abort what still runs; safe to call twice."""
        self._stream.close()
        if self._open:
            self._open = False
            self._service.open_requests -= 1

    def _submit(self, wanted: bool) -> Stream:
        if not wanted:
            return Stream(self._service.engine, [])
        try:
            return self._service.engine.open(self.job.requests)
        except EngineDead as error:
            raise ApiError(503, str(error), "engine_failed", retry_after=1) from None

    def _take(self, deltas: list[Delta]) -> list[Update]:
        updates = []
        for delta in deltas:
            choice = self._by_id[delta.request_id]
            if choice.finish_reason is not None:  # a stop string ended it; this was already under way
                continue
            update = choice.take(delta)
            if update.finish_reason is not None:
                self._stream.abort(delta.request_id)
            updates.append(update)
        return updates
