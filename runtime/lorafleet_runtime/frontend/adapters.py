"""Every adapter this replica has been told of: those still being fetched, and those the engine holds.

Knows ids, revisions and states; knows no HTTP. The engine's word wins once it has taken an adapter.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass

import structlog

from lorafleet_runtime.errors import ArtifactError
from lorafleet_runtime.frontend.artifact_files import ArtifactFile
from lorafleet_runtime.frontend.artifacts import ArtifactStore
from lorafleet_runtime.frontend.engine_api import Engine
from lorafleet_runtime.protocol import AdapterState, LoadAdapter, UnloadAdapter

log = structlog.get_logger("runtime")

_REASONS = {
    "digest_mismatch": "DigestMismatch",
    "disk_full": "DiskFull",
    "fetch_failed": "FetchFailed",
    "invalid_adapter": "InvalidAdapter",
}
# An engine that fails a second time at once may show no change in between; after this long its word is taken.
_REPEATED_FAILURE_SECONDS = 1.0


@dataclass(slots=True)
class _Fetch:
    state: AdapterState
    task: asyncio.Task[None]


class Adapters:
    """The registry that the admin port changes and the serving port reads."""

    def __init__(self, engine: Engine, store: ArtifactStore) -> None:
        self._engine = engine
        self._store = store
        self._fetches: dict[str, _Fetch] = {}
        self.version = 0

    def states(self) -> list[AdapterState]:
        """Each revision of each adapter, once."""
        fetching = [fetch.state for fetch in self._fetches.values()]
        mine = {(state.id, state.revision) for state in fetching}
        held = self._engine.state.adapters
        return [s for s in held if (s.id, s.revision) not in mine or s.state == "Draining"] + fetching

    def of(self, adapter: str) -> list[AdapterState]:
        """The states under one id: none, one, or an old revision beside a new one."""
        return [state for state in self.states() if state.id == adapter]

    def find(self, adapter: str, revision: str) -> AdapterState | None:
        """One revision's state; a draining copy counts only where there is no other."""
        found = [state for state in self.of(adapter) if state.revision == revision]
        return min(found, key=lambda state: state.state == "Draining", default=None)

    def put(self, adapter: str, revision: str, files: list[ArtifactFile], pinned: bool) -> None:
        """Make this revision the one under this id; idempotent. A failed one is tried again."""
        current = self.find(adapter, revision)
        fetch = self._fetches.get(adapter)
        if current is not None and current.state == "Loading":
            return
        if fetch is not None:
            fetch.task.cancel()
            self._drop(adapter)
            current = self.find(adapter, revision)
        if current is not None and current.state == "Ready":
            # The engine keeps what it has, takes the pin, and gives up any other revision on its way.
            self._engine.load_adapter(LoadAdapter(adapter, revision, "", pinned))
            return
        state = AdapterState(adapter, revision, "Loading", pinned=pinned)
        task = asyncio.create_task(self._load(state, files))
        self._fetches[adapter] = _Fetch(state, task)
        self.version += 1

    async def wait(self, adapter: str, revision: str, seconds: float) -> AdapterState | None:
        """The outcome, or the state after so many seconds; None when a newer order replaced this one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                fetch = self._fetches.get(adapter)
                if fetch is not None and fetch.state.revision == revision:
                    await asyncio.wait([fetch.task])
                while True:
                    version = self._engine.version
                    state = self.find(adapter, revision)
                    if state is None or state.state != "Loading":
                        break
                    await self._engine.wait_newer(version)
        return self.find(adapter, revision)

    async def delete(self, adapter: str, seconds: float = 1.0) -> bool:
        """Take the name away; True when nothing is left, False while running requests hold it."""
        if not self.of(adapter):
            return True
        fetch = self._fetches.get(adapter)
        if fetch is not None:
            fetch.task.cancel()
            self._drop(adapter)
        sent_at = self._engine.version
        self._engine.unload_adapter(UnloadAdapter(adapter))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._engine.version == sent_at or not self._only_drains(adapter):
                    await self._engine.wait_newer(self._engine.version)
        return not self.of(adapter)

    def _only_drains(self, adapter: str) -> bool:
        return all(state.state == "Draining" for state in self.of(adapter))

    async def _load(self, state: AdapterState, files: list[ArtifactFile]) -> None:
        started = time.monotonic()
        try:
            folder = await self._store.fetch(state.revision, files)
        except ArtifactError as error:
            self._fail(state, _REASONS[error.code], error.message)
            return
        except Exception as error:  # what breaks in a new way must show in the state, not vanish in a task
            self._fail(state, "FetchFailed", f"{type(error).__name__}: {error}")
            return
        await self._hand_over(LoadAdapter(state.id, state.revision, str(folder), state.pinned))
        self._drop(state.id)
        seconds = round(time.monotonic() - started, 3)
        log.info("an adapter is with the engine", adapter=state.id, seconds=seconds)

    async def _hand_over(self, message: LoadAdapter) -> None:
        """Send to the engine; return when its state speaks of this order and not of an earlier failure."""
        before = self._held(message)
        sent = time.monotonic()
        self._engine.load_adapter(message)
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._engine.wait_newer(self._engine.version), _REPEATED_FAILURE_SECONDS)
            held = self._held(message)
            if held is None:
                continue
            failed_alike = held.state == "Failed" and held.message == before.message if before else False
            old_news = failed_alike and time.monotonic() - sent < _REPEATED_FAILURE_SECONDS
            if not old_news:
                return

    def _held(self, message: LoadAdapter) -> AdapterState | None:
        wanted = (message.adapter, message.revision)
        for state in self._engine.state.adapters:
            if (state.id, state.revision) == wanted and state.state != "Draining":
                return state
        return None

    def _fail(self, state: AdapterState, reason: str, message: str) -> None:
        failed = AdapterState(state.id, state.revision, "Failed", reason, message, pinned=state.pinned)
        self._fetches[state.id].state = failed
        self.version += 1
        log.warning("an adapter could not be had", adapter=state.id, reason=reason, message=message)

    def _drop(self, adapter: str) -> None:
        self._fetches.pop(adapter, None)
        self.version += 1
