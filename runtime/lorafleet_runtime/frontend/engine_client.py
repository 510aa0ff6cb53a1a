"""The front end's side of the engine: its process, the two sockets, and who waits for which request.

Knows messages and request ids; knows no HTTP and no text.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import structlog
import zmq

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.errors import EngineDead
from lorafleet_runtime.frontend.engine_api import Broadcast, Stream
from lorafleet_runtime.frontend.tenant_board import TenantBoard
from lorafleet_runtime.protocol import (
    AbortRequest,
    AddRequest,
    Deltas,
    EngineState,
    LoadAdapter,
    MergeCounters,
    Sharing,
    Shutdown,
    ToEngine,
    UnloadAdapter,
    decode_from_engine,
    encode,
)

log = structlog.get_logger("runtime")

ENGINE_COMMAND = (sys.executable, "-m", "lorafleet_runtime.engine.process")
_STOP_SECONDS = 5.0
_RETRY_SECONDS = 0.02


class EngineClient:
    """An engine in a child process; `died` is set when the child has ended, for whatever reason."""

    def __init__(
        self, config: EngineConfig, log_format: str = "console", command: Sequence[str] = ENGINE_COMMAND
    ) -> None:
        self._command = command
        self._config = config
        self._log_format = log_format
        self._states = Broadcast(EngineState("Loading", message="starting the engine"))
        self.board = TenantBoard(config.incarnation, lambda table: self._send(MergeCounters(table)))
        self._streams: dict[str, Stream] = {}
        self._outgoing: deque[bytes] = deque()
        self.folder = Path(tempfile.mkdtemp(prefix="lorafleet-"))
        self._context = zmq.Context()
        self._push = self._context.socket(zmq.PUSH)
        self._pull = self._context.socket(zmq.PULL)
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._stopping = False
        self._retry: asyncio.TimerHandle | None = None
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
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Bind the sockets and start the process; its loading shows in `state`."""
        endpoint = f"ipc://{self.folder}/engine"
        for socket, suffix in ((self._push, "in"), (self._pull, "out")):
            # No limit on what waits: a request's deltas are bounded by its max_tokens.
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.LINGER, 0)
            socket.bind(f"{endpoint}.{suffix}")
        asyncio.get_running_loop().add_reader(self._pull.fileno(), self._receive)
        self._process = await asyncio.create_subprocess_exec(
            *self._command, "--endpoint", endpoint, "--config", self._config.to_json(),
            "--log-format", self._log_format, "--exit-with-parent",
            stdin=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._watch = asyncio.create_task(self._watch_process(self._process))
        # The socket's descriptor is edge-triggered: what came before it was watched makes no edge.
        self._receive()

    async def stop(self) -> None:
        """End the engine: by message, then by the pipe, at last by force. Everything still open fails."""
        self._stopping = True
        if self.state.phase == "Ready":
            self._send(Shutdown())
            await self._ended(_STOP_SECONDS)
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            await self._ended(_STOP_SECONDS)
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._ended(_STOP_SECONDS)
        if self._watch is not None:
            await self._watch
        self._close_sockets()

    def open(self, requests: Sequence[AddRequest]) -> Stream:
        if self.died.is_set():
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
        self._outgoing.append(encode(message))
        if self._retry is None:
            self._flush()

    def _flush(self) -> None:
        self._retry = None
        try:
            while self._outgoing:
                self._push.send(self._outgoing[0], zmq.NOBLOCK)
                self._outgoing.popleft()
        except zmq.Again:  # the engine has not connected yet
            if not self.died.is_set():
                self._retry = asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._flush)

    def _receive(self) -> None:
        while not self._pull.closed:
            try:
                message = decode_from_engine(self._pull.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            match message:
                case Deltas():
                    self._dispatch(message)
                case Sharing():
                    self.board.took(message)
                case EngineState():
                    self._states.replace(message)

    def _dispatch(self, message: Deltas) -> None:
        for delta in message.items:
            stream = self._streams.get(delta.request_id)
            if stream is None:  # aborted while this delta was under way
                continue
            if delta.finish_reason is not None:
                del self._streams[delta.request_id]
            stream.put(delta)

    async def _watch_process(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        self._receive()
        reason = f"the engine process ended with code {code}"
        if self.state.phase == "Failed" and self.state.message:
            reason = self.state.message
        lost = len(self._streams)
        self.died.set()
        self._states.replace(EngineState("Failed", message=reason))
        for stream in set(self._streams.values()):
            stream.fail(EngineDead(reason))
        self._streams.clear()
        if not self._stopping:
            log.error("the engine is gone", code=code, reason=reason, open_requests=lost)

    async def _ended(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.died.wait(), seconds)

    def _close_sockets(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pull.fileno())
        if self._retry is not None:
            self._retry.cancel()
        self._push.close()
        self._pull.close()
        self._context.term()
        shutil.rmtree(self.folder, ignore_errors=True)
