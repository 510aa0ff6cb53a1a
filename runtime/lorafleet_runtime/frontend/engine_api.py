"""What the HTTP side needs of an engine, whatever is behind it: a child process, or a script in a test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from lorafleet_runtime.errors import LorafleetError
from lorafleet_runtime.frontend.tenant_board import TenantBoard
from lorafleet_runtime.protocol import AddRequest, Delta, EngineState, LoadAdapter, UnloadAdapter


class Stream:
    """What the engine says about one client's requests, in order. `close` aborts those still open."""

    def __init__(self, engine: Engine, request_ids: Iterable[str]) -> None:
        self._engine = engine
        self._open = set(request_ids)
        self._ready: list[Delta] = []
        self._wake = asyncio.Event()
        self._error: LorafleetError | None = None

    async def next(self) -> list[Delta]:
        """Every delta since the last call, at least one. Raises what `fail` was given."""
        if not self._ready and self._error is None:
            self._wake.clear()
            await self._wake.wait()
        if not self._ready and self._error is not None:
            raise self._error
        ready, self._ready = self._ready, []
        return ready

    def put(self, delta: Delta) -> None:
        """Called by the engine's side; never blocks. A slow reader gets several deltas in one `next`."""
        if delta.finish_reason is not None:
            self._open.discard(delta.request_id)
        self._ready.append(delta)
        self._wake.set()

    def fail(self, error: LorafleetError) -> None:
        """No more will come: what has come may still be read, then `error` is raised."""
        self._error = error
        self._wake.set()

    def abort(self, request_id: str) -> None:
        """Give up one request, if it is still running."""
        if request_id in self._open:
            self._open.discard(request_id)
            self._engine.abort(request_id)

    def close(self) -> None:
        """Give up what is still running; safe to call twice."""
        for request_id in list(self._open):
            self.abort(request_id)


class Engine(Protocol):
    """Requests go in by `open`; adapters' outcomes come out in `state`, tenants' accounts on `board`."""

    board: TenantBoard

    @property
    def state(self) -> EngineState: ...

    @property
    def version(self) -> int:
        """Grows whenever `state` is replaced."""
        ...

    def open(self, requests: Sequence[AddRequest]) -> Stream:
        """Submit requests and watch them together. Raises EngineDead."""
        ...

    def abort(self, request_id: str) -> None: ...

    def load_adapter(self, message: LoadAdapter) -> None: ...

    def unload_adapter(self, message: UnloadAdapter) -> None: ...

    async def wait_newer(self, version: int) -> None:
        """Return once `version` has grown beyond the given one."""
        ...


class Broadcast:
    """The latest state, for whoever wants it now or waits for a newer one."""

    def __init__(self, state: EngineState) -> None:
        self.state = state
        self.version = 0
        self._newer = asyncio.Event()

    def replace(self, state: EngineState) -> None:
        self.state = state
        self.version += 1
        self._newer.set()
        self._newer = asyncio.Event()

    async def wait_newer(self, version: int) -> None:
        while self.version <= version:
            await self._newer.wait()
