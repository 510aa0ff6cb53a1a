"""One replica on this machine: a runtime process, watched, polled and ended in order. Knows no other replica."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from lorafleet_operator.backoff import RESTARTS, Backoff
from lorafleet_operator.core.actions import StartReplica
from lorafleet_operator.core.objects import Ref, Replica, ReplicaState, Resident
from lorafleet_operator.errors import RuntimeCallError, Unauthorized
from lorafleet_operator.local import processes
from lorafleet_operator.local.commands import model_path, runtime_command
from lorafleet_operator.local.ports import free_port
from lorafleet_operator.runtime_client import RuntimeClient, RuntimeState

log = structlog.get_logger("replica")


@dataclass(frozen=True, slots=True)
class Launch:
    """What every replica of this fleet is started with. The tokens travel in the environment, never in argv."""

    command: tuple[str, ...]
    logs: Path
    serving_token: str
    admin_token: str
    host: str = "127.0.0.1"
    log_format: str = "console"
    epoch: int = 1
    poll_seconds: float = 0.25
    hung_seconds: float = 30.0  # a live process that does not answer for so long is ended
    settled_seconds: float = 30.0  # a crash after so long in Ready does not count as a failure in a row
    stop_seconds: float = 5.0  # between SIGTERM and SIGKILL
    backoff: Backoff = RESTARTS

    def environment(self) -> dict[str, str]:
        tokens = {"LORAFLEET_SERVING_TOKEN": self.serving_token, "LORAFLEET_ADMIN_TOKEN": self.admin_token}
        return {**os.environ, **tokens}


class LocalReplica:
    """The life of one replica over any number of processes: start, poll, crash, back off, start again, stop.

    `changed` is called when what `view()` says matters to a plan; `reported` with every new state of the runtime.
    """

    def __init__(
        self, name: str, launch: Launch, *, changed: Callable[[], None],
        reported: Callable[[LocalReplica, RuntimeState | None], None] = lambda replica, state: None,
    ) -> None:  # fmt: skip
        self.name = name
        self.state: ReplicaState = "Failed"
        self.report: RuntimeState | None = None
        self.client: RuntimeClient | None = None
        self.child: processes.Child | None = None
        self.message = ""
        self.failures = 0
        self.last_error = ""
        self.retry_at = 0.0
        self.since = time.monotonic()
        self.ports: tuple[int, int] = (0, 0)
        self._launch = launch
        self._changed = changed
        self._reported = reported
        self._action: StartReplica | None = None
        self._life: asyncio.Task[None] | None = None
        self._ready_since: float | None = None
        self._verdict = ""  # why this process ends, when we know better than its log
        self._stopping = False

    @property
    def running(self) -> bool:
        return self._life is not None and not self._life.done()

    @property
    def base(self) -> Ref:
        """The base model it serves."""
        assert self._action is not None, "a replica has no base model before its first start"
        return self._action.base.ref

    @property
    def incarnation(self) -> str:
        return self.report.incarnation if self.report else ""

    @property
    def log_path(self) -> Path:
        return self._launch.logs / f"{self.name}.log"

    def view(self, residents: tuple[Resident, ...] = ()) -> Replica:
        """This replica for a plan; `residents` come from the world, which knows the calls on their way too."""
        action, report = self._action, self.report
        assert action is not None, "a replica is viewed after its first start"
        host = f"http://{self._launch.host}"
        return Replica(
            name=self.name, base=action.base.ref, index=action.index, state=self.state, spec_hash=action.spec_hash,
            incarnation=self.incarnation,
            url=f"{host}:{self.ports[0]}", admin_url=f"{host}:{self.ports[1]}",
            message=self.message, progress=report.progress if report else 0.0, residents=residents,
            pages_total=report.pages_total if report else 0, pages_free=report.pages_free if report else 0,
            running=report.running if report else 0, waiting=report.waiting if report else 0,
            failures=0 if self.state == "Ready" else self.failures,
            last_error="" if self.state == "Ready" else self.last_error, retry_at=self.retry_at, since=self.since,
        )  # fmt: skip

    async def start(self, action: StartReplica, reserved: Mapping[str, tuple[int, int]]) -> None:
        """Start a process, unless one runs. A start that fails is a failure like a crash: said why, backed off."""
        if self.running or self._stopping:
            return
        self._action = action
        self.report, self._ready_since, self._verdict = None, None, ""
        taken = {port for pair in reserved.values() for port in pair}
        port = free_port(self._launch.host, taken)
        self.ports = (port, free_port(self._launch.host, {*taken, port}))
        argv = runtime_command(
            self._launch.command, action.base, model_path(action.artifact), host=self._launch.host,
            port=self.ports[0], admin_port=self.ports[1], log_format=self._launch.log_format,
        )  # fmt: skip
        self._turn("Starting", "")
        try:
            self.child = await processes.spawn(argv, env=self._launch.environment(), log=self.log_path)
        except OSError as error:
            self._failed(f"cannot start {argv[0]}: {error.strerror or error}")
            return
        admin_url = f"http://{self._launch.host}:{self.ports[1]}"
        self.client = RuntimeClient(
            admin_url, self._launch.admin_token, epoch=self._launch.epoch, timeout=min(5.0, self._launch.hung_seconds)
        )
        log.info("runtime process started", replica=self.name, pid=self.child.pid, url=self.view().url)
        self._life = asyncio.create_task(self._live(self.child, self.client), name=f"replica {self.name}")

    async def refresh(self) -> None:
        """Poll once, now. Raises RuntimeCallError."""
        if self.client is not None:
            self._take(await self.client.state())

    async def stop(self, drain_seconds: float) -> None:
        """Drain for at most `drain_seconds`, end the process, and be Gone. Idempotent; raises nothing."""
        self._stopping = True
        if self.running and self.child is not None and self._life is not None:
            self._turn("Draining", self.message)
            with contextlib.suppress(RuntimeCallError, TimeoutError):
                async with asyncio.timeout(drain_seconds):
                    await self._drain()
            await self.child.stop(self._launch.stop_seconds)
            await self._life
        self._turn("Gone", "")

    async def _drain(self) -> None:
        assert self.client is not None
        await self.client.drain()
        while True:
            state = await self.client.state()
            if state.running == 0 and state.waiting == 0:
                return
            await asyncio.sleep(self._launch.poll_seconds)

    async def _live(self, child: processes.Child, client: RuntimeClient) -> None:
        polling = asyncio.create_task(self._poll(child, client), name=f"poll {self.name}")
        try:
            code = await child.wait()
        except asyncio.CancelledError:  # the world ends without order: leave no process behind
            await child.kill()
            raise
        finally:
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)
            await client.close()
            self.client = None
        self.report = None
        self._reported(self, None)
        if not self._stopping:
            self._failed(self._obituary(code))

    async def _poll(self, child: processes.Child, client: RuntimeClient) -> None:
        answered = time.monotonic()
        while True:
            try:
                self._take(await client.state())
                answered = time.monotonic()
            except Unauthorized as error:
                self._verdict = f"another program answers on its admin port {self.ports[1]} ({error})"
            except RuntimeCallError as error:
                silent = time.monotonic() - answered
                if silent > self._launch.hung_seconds:
                    self._verdict = f"no answer for {silent:.0f} s ({error}): the process was ended"
                    await child.kill()
                    return
            if self.report is not None and self.report.phase == "Failed":
                await child.stop(self._launch.stop_seconds)
                return
            await asyncio.sleep(self._launch.poll_seconds)

    def _take(self, report: RuntimeState) -> None:
        if report is self.report:
            return
        before, self.report = self.report, report
        if before is not None and before.incarnation != report.incarnation:
            self._reported(self, None)  # another engine: what failed in the last one is history
        self._reported(self, report)
        if report.phase == "Ready":
            if self._ready_since is None:
                self._ready_since = time.monotonic()
            if self.state == "Starting":
                self._turn("Ready", "")
        elif report.phase == "Failed":
            self._verdict = report.message
        elif report.phase == "Loading" and self.state in ("Starting", "Ready"):
            if self.state == "Ready":  # its engine died, and it starts another
                log.warning("a replica's engine is started again", replica=self.name, why=report.message)
                self._ready_since = None
                self._turn("Starting", report.message)
            self.message = report.message
        if before is None or (before.phase, before.adapters) != (report.phase, report.adapters):
            self._changed()

    def _obituary(self, code: int) -> str:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
        # Who is killed has no last word: the log's last line would pass for the reason.
        said = self._verdict or ("" if code == -signal.SIGKILL else processes.last_lines(self.log_path, 1))
        return f"the runtime {how}{': ' + said if said else ''} (log: {self.log_path})"

    def _failed(self, why: str) -> None:
        now = time.monotonic()
        settled = self._ready_since is not None and now - self._ready_since >= self._launch.settled_seconds
        self.failures = 1 if settled else self.failures + 1
        self.retry_at = now + self._launch.backoff.delay(self.failures, random.random())
        log.warning("replica failed", replica=self.name, why=why, retry_in=round(self.retry_at - now, 1))
        self.last_error = why
        self._turn("Failed", why)

    def _turn(self, state: ReplicaState, message: str) -> None:
        if (state, message) != (self.state, self.message):
            if state != self.state:
                self.since = time.monotonic()
            self.state, self.message = state, message
            self._changed()
