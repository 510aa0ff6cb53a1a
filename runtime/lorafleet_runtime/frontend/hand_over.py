"""Gives one adapter to the engine, and to any engine that takes its place, until one says what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from lorafleet_runtime.frontend.engine_api import Engine
from lorafleet_runtime.protocol import AdapterState, LoadAdapter

# An engine that fails a second time at once may show no change in between; after this long its word is taken.
_REPEATED_FAILURE_SECONDS = 1.0


class HandOver:
    """Thousands may be under way: each new state is looked through once for all of them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen_at = -1
        self._seen: dict[tuple[str, str], AdapterState] = {}

    async def __call__(self, order: LoadAdapter, turn: Callable[[], Awaitable[None]]) -> AdapterState:
        """The engine's word on this order, Ready or Failed, and not on an earlier one. `turn` is awaited before each
        sending."""
        told = ""
        before: AdapterState | None = None
        sent = 0.0
        while True:
            if told != self._engine.board.incarnation:  # another engine knows nothing of what the last one was told
                await turn()
                told, before, sent = self._engine.board.incarnation, self._word(order), time.monotonic()
                self._engine.load_adapter(order)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._engine.wait_newer(self._engine.version), _REPEATED_FAILURE_SECONDS)
            word = self._word(order)
            if word is None or word.state == "Loading":
                continue
            failed_alike = word.state == "Failed" and word.message == before.message if before else False
            if not (failed_alike and time.monotonic() - sent < _REPEATED_FAILURE_SECONDS):
                return word

    def _word(self, order: LoadAdapter) -> AdapterState | None:
        if self._seen_at != self._engine.version:
            self._seen_at = self._engine.version
            held = self._engine.state.adapters
            self._seen = {(state.id, state.revision): state for state in held if state.state != "Draining"}
        return self._seen.get((order.adapter, order.revision))
