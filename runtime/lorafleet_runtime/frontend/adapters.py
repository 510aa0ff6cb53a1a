"""Every adapter this replica has been told of: those still being fetched, and those the engine holds.

Knows ids, revisions and states; knows no HTTP. The engine's word wins once it has taken an adapter.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import structlog

from lorafleet_runtime.errors import ArtifactError
from lorafleet_runtime.frontend.artifact_files import ArtifactFile
from lorafleet_runtime.frontend.artifacts import ArtifactStore
from lorafleet_runtime.frontend.engine_api import Engine
from lorafleet_runtime.frontend.hand_over import HandOver
from lorafleet_runtime.protocol import AdapterState, LoadAdapter, UnloadAdapter

log = structlog.get_logger("runtime")

_REASONS = {
    "digest_mismatch": "DigestMismatch",
    "disk_full": "DiskFull",
    "fetch_failed": "FetchFailed",
    "invalid_adapter": "InvalidAdapter",
}
_VERIFIED_AT_ONCE = 4


@dataclass(slots=True)
class _Load:
    """On its way to the engine, or failed before it came there."""

    state: AdapterState
    task: asyncio.Task[None]


@dataclass(frozen=True, slots=True)
class _Held:
    """What the engine has said to be Ready, and where its files are on this machine."""

    message: LoadAdapter
    files: list[ArtifactFile]


class Adapters:
    """The registry that the admin port changes and the serving port reads."""

    def __init__(self, engine: Engine, store: ArtifactStore) -> None:
        self._engine = engine
        self._store = store
        self._hand_over = HandOver(engine)
        self._fetches: dict[str, _Load] = {}
        self._again: dict[str, _Load] = {}  # what an engine that died had, on its way to the next
        self._held: dict[str, _Held] = {}
        self._verifying = asyncio.Semaphore(_VERIFIED_AT_ONCE)
        self.version = 0
        self._found: tuple[list[AdapterState], int, dict[str, list[AdapterState]]] = ([], -1, {})

    def states(self) -> list[AdapterState]:
        """Each revision of each adapter, once."""
        coming = [load.state for load in (*self._again.values(), *self._fetches.values())]
        mine = {(state.id, state.revision) for state in coming}
        held = self._engine.state.adapters
        return [s for s in held if (s.id, s.revision) not in mine or s.state == "Draining"] + coming

    def of(self, adapter: str) -> list[AdapterState]:
        """The states under one id: none, one, or an old revision beside a new one."""
        held = self._engine.state.adapters
        if self._found[0] is not held or self._found[1] != self.version:  # not anew for each of many requests
            found: dict[str, list[AdapterState]] = {}
            for state in self.states():
                found.setdefault(state.id, []).append(state)
            self._found = held, self.version, found
        return self._found[2].get(adapter, [])

    def find(self, adapter: str, revision: str) -> AdapterState | None:
        """One revision's state; a draining copy counts only where there is no other."""
        found = [state for state in self.of(adapter) if state.revision == revision]
        return min(found, key=lambda state: state.state == "Draining", default=None)

    def pinned_pages(self, *, but: str) -> int:
        """Pages of the adapters that were ordered to stay, without those of one id."""
        pinned = {name for name, held in self._held.items() if held.message.pinned and name != but}
        return sum(state.pages for state in self.states() if state.id in pinned and state.state == "Ready")

    def put(self, adapter: str, revision: str, files: list[ArtifactFile], pinned: bool) -> None:
        """Make this revision the one under this id; idempotent. A failed one is tried again."""
        current = self.find(adapter, revision)
        if current is not None and current.state == "Loading":
            return
        self._give_up(self._fetches, adapter)
        if adapter in self._again and self._again[adapter].task.done():
            self._give_up(self._again, adapter)
        current = self.find(adapter, revision)
        if current is not None and current.state == "Ready":
            # The engine keeps what it has, takes the pin, and gives up any other revision on its way.
            order = LoadAdapter(adapter, revision, "", pinned)
            if adapter in self._held:
                held = self._held[adapter]
                self._held[adapter] = replace(held, message=msgspec.structs.replace(held.message, pinned=pinned))
            self._engine.load_adapter(order)
            return
        self._start(self._fetches, AdapterState(adapter, revision, "Loading", pinned=pinned), files)

    async def wait(self, adapter: str, revision: str, seconds: float) -> AdapterState | None:
        """The outcome, or the state after so many seconds; None when a newer order replaced this one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for loads in (self._again, self._fetches):
                    load = loads.get(adapter)
                    if load is not None and load.state.revision == revision:
                        await asyncio.wait([load.task])
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
        for loads in (self._fetches, self._again):
            self._give_up(loads, adapter)
        self._held.pop(adapter, None)
        sent_at = self._engine.version
        self._engine.unload_adapter(UnloadAdapter(adapter))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._engine.version == sent_at or not self._only_drains(adapter):
                    await self._engine.wait_newer(self._engine.version)
        return not self.of(adapter)

    async def follow_engine(self) -> None:
        """Load into every further engine what the one before it had, from where it lies on this machine. Runs until it
        is cancelled."""
        life = self._engine.board.incarnation
        while True:
            await self._engine.wait_newer(self._engine.version)
            if self._engine.board.incarnation != life:
                life = self._engine.board.incarnation
                self._load_again()

    def _load_again(self) -> None:
        for load in self._again.values():
            load.task.cancel()
        self._again.clear()
        for adapter, held in self._held.items():
            state = AdapterState(adapter, held.message.revision, "Loading", pinned=held.message.pinned)
            self._start(self._again, state, held.files)

    def _start(self, loads: dict[str, _Load], state: AdapterState, files: list[ArtifactFile]) -> None:
        loads[state.id] = _Load(state, asyncio.create_task(self._load(loads, state, files)))
        self.version += 1

    def _give_up(self, loads: dict[str, _Load], adapter: str) -> None:
        load = loads.pop(adapter, None)
        if load is not None:
            load.task.cancel()
            self.version += 1

    def _only_drains(self, adapter: str) -> bool:
        return all(state.state == "Draining" for state in self.of(adapter))

    async def _load(self, loads: dict[str, _Load], state: AdapterState, files: list[ArtifactFile]) -> None:
        started = time.monotonic()
        again = loads is self._again
        try:
            async with self._verifying if again else contextlib.nullcontext():
                folder = await self._store.fetch(state.revision, files)
        except ArtifactError as error:
            # What was whole and is damaged now can be fetched again, by an order that says from where.
            self._fail(loads, state, "FetchFailed" if again else _REASONS[error.code], error.message)
            return
        except Exception as error:  # what breaks in a new way must show in the state, not vanish in a task
            self._fail(loads, state, "FetchFailed", f"{type(error).__name__}: {error}")
            return
        order = LoadAdapter(state.id, state.revision, str(folder), state.pinned)
        outcome = await self._hand_over(order, lambda: self._turn_of(loads, state.id))
        if outcome.state == "Ready":
            self._held[state.id] = _Held(order, [_local(file, folder) for file in files])
        del loads[state.id]
        self.version += 1
        seconds = round(time.monotonic() - started, 3)
        log.info("an adapter is with the engine", adapter=state.id, seconds=seconds)

    async def _turn_of(self, loads: dict[str, _Load], adapter: str) -> None:
        """A newer revision comes after the one that it replaces: the later order gets the name."""
        if loads is self._fetches and adapter in self._again:
            await asyncio.wait([self._again[adapter].task])

    def _fail(self, loads: dict[str, _Load], state: AdapterState, reason: str, message: str) -> None:
        failed = AdapterState(state.id, state.revision, "Failed", reason, message, pinned=state.pinned)
        loads[state.id].state = failed
        self.version += 1
        log.warning("an adapter could not be had", adapter=state.id, reason=reason, message=message)


def _local(file: ArtifactFile, folder: Path) -> ArtifactFile:
    """Where the file is by now: the links it came from live for minutes, and may hold credentials."""
    return ArtifactFile(file.name, (folder / file.name).as_uri(), file.sha256, file.size)
