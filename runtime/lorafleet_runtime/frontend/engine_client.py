"""The front end's side of the engine: its state, who waits for which request, and another process when one dies.

Knows messages and request ids; knows no HTTP and no text.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import structlog

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.constraints.constraint import Vocabulary
from lorafleet_runtime.errors import EngineDead
from lorafleet_runtime.frontend.engine_api import Broadcast, Stream
from lorafleet_runtime.frontend.engine_process import EngineProcess, Patience
from lorafleet_runtime.frontend.restarts import NEVER, Restarts
from lorafleet_runtime.frontend.tenant_board import TenantBoard
from lorafleet_runtime.protocol import (
    AbortRequest,
    AdapterNews,
    AdapterState,
    AddRequest,
    Deltas,
    EngineState,
    FromEngine,
    LoadAdapter,
    MergeCounters,
    Sharing,
    ToEngine,
    UnloadAdapter,
)

log = structlog.get_logger("runtime")

ENGINE_COMMAND = (sys.executable, "-m", "lorafleet_runtime.engine.process")


class EngineClient:
    """An engine in a child process. When that ends, everything open fails at once, and `restarts` says whether another
    process takes its place; `died` is set when none does.

    An engine that never was Ready is not started again: its settings or its model are wrong, and would be again. Each
    process has an incarnation of its own, on `board`; adapters have to be loaded anew by whoever had them loaded.
    """

    def __init__(
        self, config: EngineConfig, log_format: str = "console", command: Sequence[str] = ENGINE_COMMAND,
        restarts: Restarts = NEVER, patience: Patience | None = None,
    ) -> None:  # fmt: skip
        self._command = command
        self._config = config
        self._log_format = log_format
        self._restarts = restarts
        self._patience = patience or Patience()
        self._states = Broadcast(EngineState("Loading", message="starting the engine"))
        self.board = TenantBoard(config.incarnation, lambda table: self._send(MergeCounters(table)))
        self._vocabulary: Vocabulary | None = None
        self._streams: dict[str, Stream] = {}
        self._adapters: dict[int, AdapterState] = {}
        self._shown: list[AdapterState] = []  # the same object as long as nothing changes
        self._process = self._new_process()
        self._life: asyncio.Task[None] | None = None
        self._was_ready = False
        self._away = ""  # why there is no engine now, until the next one is Ready
        self._last_words = ""
        self._deaths: list[float] = []
        self._stopping = asyncio.Event()
        self.died = asyncio.Event()

    @property
    def state(self) -> EngineState:
        return self._states.state

    @property
    def version(self) -> int:
        return self._states.version

    @property
    def pid(self) -> int | None:
        """The engine's process id, once it has been started."""
        return self._process.pid

    @property
    def folder(self) -> Path:
        """Where the present process's sockets are; gone with it."""
        return self._process.folder

    async def start(self) -> None:
        """Start the process; its loading shows in `state`. Raises OSError."""
        await self._process.start()
        self._life = asyncio.create_task(self._live())

    async def stop(self) -> None:
        """End the engine, in order where it listens. Everything still open fails."""
        self._stopping.set()
        await self._process.stop(by_message=self.state.phase == "Ready")
        if self._life is not None:
            await self._life

    def speak(self, vocabulary: Vocabulary) -> None:
        """What its tokens mean, for this engine and for those that replace it."""
        self._vocabulary = vocabulary
        self._send(vocabulary)

    def open(self, requests: Sequence[AddRequest]) -> Stream:
        if self.died.is_set() or self._away:
            raise EngineDead(self.state.message)
        stream = Stream(self, [request.request_id for request in requests])
        for request in requests:
            self._streams[request.request_id] = stream
            self._send(request)
        return stream

    def abort(self, request_id: str) -> None:
        if self._streams.pop(request_id, None) is not None:
            self._send(AbortRequest(request_id))

    def load_adapter(self, message: LoadAdapter) -> None:
        self._send(message)

    def unload_adapter(self, message: UnloadAdapter) -> None:
        self._send(message)

    async def wait_newer(self, version: int) -> None:
        await self._states.wait_newer(version)

    def _send(self, message: ToEngine) -> None:
        self._process.send(message)

    def _heard(self, message: FromEngine) -> None:
        match message:
            case Deltas():
                self._dispatch(message)
            case Sharing():
                self.board.took(message)
            case EngineState(phase="Failed"):
                self._last_words = message.message  # its process is about to end: only then is it known what follows
            case AdapterNews():
                for key in message.gone:
                    del self._adapters[key]
                self._adapters |= message.told
                self._shown = list(self._adapters.values())
            case EngineState(phase="Ready"):
                self._was_ready, self._away = True, ""
                self._states.replace(msgspec.structs.replace(message, adapters=self._shown))
            case EngineState():
                again = f" (started again: {self._away})" if self._away else ""
                self._states.replace(msgspec.structs.replace(message, message=message.message + again))

    def _dispatch(self, message: Deltas) -> None:
        for delta in message.items:
            stream = self._streams.get(delta.request_id)
            if stream is None:  # aborted while this delta was under way
                continue
            if delta.finish_reason is not None:
                del self._streams[delta.request_id]
            stream.put(delta)

    async def _live(self) -> None:
        """From one process to the next, until there is no next."""
        reason = await self._process.ended()
        while (delay := self._bury(reason)) is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
            if self._stopping.is_set():
                self._process.close()
                self._end("the replica is stopping")
                return
            try:
                await self._process.start()
            except OSError as error:
                reason = f"the engine process cannot be started: {error.strerror or error}"
                continue
            if self._stopping.is_set():  # asked while there was no process to stop
                await self._process.stop(by_message=False)
            reason = await self._process.ended()

    def _bury(self, reason: str) -> float | None:
        """Fail what is open, and make the next process, which takes messages at once. Seconds until it is started; None
        when there is no next."""
        reason, self._last_words = self._last_words or reason, ""
        lost, self._streams = self._streams, {}
        for stream in set(lost.values()):
            stream.fail(EngineDead(reason))
        if self._stopping.is_set():
            self._end(reason)
            return None
        self._deaths.append(asyncio.get_running_loop().time())
        delay = self._restarts.delay(self._deaths) if self._was_ready else None
        log.error("the engine is gone", reason=reason, open_requests=len(lost), restart_in=delay)
        if delay is None:
            self._end(reason)
            return None
        self._away = reason
        self._adapters, self._shown = {}, []
        self._config = replace(self._config, incarnation=secrets.token_hex(8))
        self._process = self._new_process()
        if self._vocabulary is not None:
            self._send(self._vocabulary)
        if table := self.board.begin(self._config.incarnation):
            self._send(MergeCounters(table))
        self._states.replace(EngineState("Loading", message=f"{reason}; it is started again"))
        return delay

    def _end(self, reason: str) -> None:
        self.died.set()
        self._states.replace(EngineState("Failed", message=reason))

    def _new_process(self) -> EngineProcess:
        return EngineProcess(self._config, self._log_format, self._command, self._heard, self._patience)
