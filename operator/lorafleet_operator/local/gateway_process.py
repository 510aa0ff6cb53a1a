"""The gateway of a fleet on this machine: one child process, started again when it ends."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import structlog

from lorafleet_operator.backoff import RESTARTS, Backoff
from lorafleet_operator.local import processes

log = structlog.get_logger("gateway")


@dataclass(slots=True)
class GatewayProcess:
    """Keeps `argv` running. `ready` says whether clients can connect; `message` why not."""

    argv: Sequence[str]
    url: str
    log_path: Path
    serving_token: str
    changed: Callable[[], None]
    backoff: Backoff = RESTARTS
    settled_seconds: float = 30.0
    stop_seconds: float = 10.0  # its streams may end meanwhile
    ready: bool = False
    message: str = ""
    child: processes.Child | None = None
    failures: int = 0
    _stopping: bool = False
    _ended: asyncio.Event | None = None

    async def run(self) -> None:
        """Until `stop()`: start, wait for its end, back off, start again."""
        self._ended = asyncio.Event()
        try:
            while not self._stopping:
                started = time.monotonic()
                why = await self._once()
                if self._stopping:
                    return
                settled = time.monotonic() - started >= self.settled_seconds
                self.failures = 1 if settled else self.failures + 1
                delay = self.backoff.delay(self.failures, random.random())
                self._turn(False, why)
                log.warning("gateway failed", why=why, retry_in=round(delay, 1))
                await asyncio.sleep(delay)
        finally:
            if self.child is not None:
                await self.child.kill()
            self._ended.set()

    async def stop(self) -> None:
        """Tell it to stop accepting and finish its streams, wait, then end it."""
        self._stopping = True
        self._turn(False, "stopping")
        if self.child is not None:
            await self.child.stop(self.stop_seconds)

    async def _once(self) -> str:
        # The serving token alone: a gateway has no business on a runtime's admin port.
        env = {key: value for key, value in os.environ.items() if key != "LORAFLEET_ADMIN_TOKEN"}
        env["LORAFLEET_SERVING_TOKEN"] = self.serving_token
        try:
            self.child = child = await processes.spawn(self.argv, env=env, log=self.log_path)
        except OSError as error:
            return f"cannot start {self.argv[0]}: {error.strerror or error}"
        if self._stopping:  # asked while the process was being started
            await child.stop(self.stop_seconds)
        log.info("gateway process started", pid=child.pid, url=self.url)
        probing = asyncio.create_task(self._probe())
        try:
            code = await child.wait()
        finally:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)
        said = processes.last_lines(self.log_path, 1)
        how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
        return f"the gateway {how}{': ' + said if said else ''} (log: {self.log_path})"

    async def _probe(self) -> None:
        async with httpx.AsyncClient(base_url=self.url, timeout=2.0, trust_env=False) as client:
            while True:
                try:
                    self._turn((await client.get("/health")).status_code < 500, "")
                except httpx.HTTPError as error:
                    self._turn(False, f"no answer yet: {type(error).__name__}")
                await asyncio.sleep(0.2 if not self.ready else 2.0)

    def _turn(self, ready: bool, message: str) -> None:
        changed = ready != self.ready
        self.ready, self.message = ready, message
        if changed:
            self.changed()
