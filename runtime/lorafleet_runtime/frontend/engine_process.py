"""One engine process from its start to its end: the child, its two sockets, and whether it still answers.

Knows messages; knows neither requests nor adapters.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import zmq

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.protocol import Alive, FromEngine, Shutdown, ToEngine, decode_from_engine, encode

log = structlog.get_logger("runtime")

_STOP_SECONDS = 5.0
_RETRY_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a process may say nothing at all, and how long one step may last, before it is killed.

    A step on a CPU, of many tokens through a large model, lasts minutes; only a hung device takes longer than that.
    """

    silent_seconds: float = 15.0
    busy_seconds: float = 600.0


class EngineProcess:
    """`heard` is called with every message but its pulse, in order, the last ones before `ended` returns."""

    def __init__(
        self, config: EngineConfig, log_format: str, command: Sequence[str], heard: Callable[[FromEngine], None],
        patience: Patience,
    ) -> None:  # fmt: skip
        self._arguments = ("--config", config.to_json(), "--log-format", log_format, "--exit-with-parent")
        self._command = command
        self._heard = heard
        self._patience = patience
        self._outgoing: deque[bytes] = deque()
        self.folder = Path(tempfile.mkdtemp(prefix="lorafleet-"))
        self._context = zmq.Context()
        self._push = self._context.socket(zmq.PUSH)
        self._pull = self._context.socket(zmq.PULL)
        self._child: asyncio.subprocess.Process | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._pulse_at: float | None = None  # loop time of the last sign of life, once it gives any
        self._verdict = ""  # why we killed it

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    async def start(self) -> None:
        """Bind the sockets and start the process. Raises OSError; then nothing is left of it."""
        endpoint = f"ipc://{self.folder}/engine"
        for socket, suffix in ((self._push, "in"), (self._pull, "out")):
            # No limit on what waits: a request's deltas are bounded by its max_tokens.
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.RCVHWM, 0)
            socket.setsockopt(zmq.LINGER, 0)
            socket.bind(f"{endpoint}.{suffix}")
        asyncio.get_running_loop().add_reader(self._pull.fileno(), self._receive)
        try:
            self._child = await asyncio.create_subprocess_exec(
                *self._command, "--endpoint", endpoint, *self._arguments, stdin=asyncio.subprocess.PIPE
            )
        except OSError:
            self.close()
            raise
        # The socket's descriptor is edge-triggered: what came before it was watched makes no edge.
        self._receive()

    async def ended(self) -> str:
        """Wait for the process's end, which is said in words; kill it when it does not answer any more."""
        assert self._child is not None, "start comes first"
        watch = asyncio.create_task(self._watch(self._child))
        code = await self._child.wait()
        watch.cancel()
        self._receive()
        self.close()
        if self._verdict:
            return self._verdict
        killed = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return f"the engine process {killed}"

    async def stop(self, *, by_message: bool) -> None:
        """End it: by message, then by the pipe, at last by force. `ended` returns soon after."""
        child = self._child
        if child is None:
            return
        if by_message:
            self.send(Shutdown())
            await _gone(child)
        if child.stdin is not None:
            child.stdin.close()
        await _gone(child)
        if child.returncode is None:
            child.kill()
            await _gone(child)

    def send(self, message: ToEngine) -> None:
        """In order; what is sent before the process listens is kept for it. Nothing is sent to a process that ended."""
        if self._push.closed:
            return
        self._outgoing.append(encode(message))
        if self._retry is None:
            self._flush()

    def _flush(self) -> None:
        self._retry = None
        try:
            while self._outgoing:
                self._push.send(self._outgoing[0], zmq.NOBLOCK)
                self._outgoing.popleft()
        except zmq.Again:  # it has not connected yet
            self._retry = asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._flush)

    def _receive(self) -> None:
        while not self._pull.closed:
            try:
                message = decode_from_engine(self._pull.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            if isinstance(message, Alive):
                self._pulse_at = asyncio.get_running_loop().time()
                if message.busy_seconds > self._patience.busy_seconds:
                    self._kill(f"a step of the engine has lasted {message.busy_seconds:.0f} s")
            else:
                self._heard(message)

    async def _watch(self, child: asyncio.subprocess.Process) -> None:
        loop, every = asyncio.get_running_loop(), self._patience.silent_seconds / 8
        while True:
            asleep_at = loop.time()
            await asyncio.sleep(every)
            self._receive()
            if self._pulse_at is None:
                continue
            if loop.time() - asleep_at > 2 * every:  # it is this process that stood still: it cannot tell
                self._pulse_at = loop.time()
            if (silent := loop.time() - self._pulse_at) > self._patience.silent_seconds:
                self._kill(f"the engine process gave no sign of life for {silent:.0f} s")

    def _kill(self, why: str) -> None:
        if self._child is not None and self._child.returncode is None and not self._verdict:
            self._verdict = f"{why}, and was killed"
            log.error("the engine hangs", reason=self._verdict)
            self._child.kill()

    def close(self) -> None:
        """Give up the sockets; done already for a process that has ended or could not be started."""
        if self._pull.closed:
            return
        asyncio.get_running_loop().remove_reader(self._pull.fileno())
        if self._retry is not None:
            self._retry.cancel()
        self._push.close()
        self._pull.close()
        self._context.term()
        shutil.rmtree(self.folder, ignore_errors=True)


async def _gone(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(child.wait(), _STOP_SECONDS)
