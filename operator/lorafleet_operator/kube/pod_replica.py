"""One replica in a cluster: a pod, polled on its admin port. Starts and ends nothing: that is the kubelet's work."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog

from lorafleet_operator.core.objects import Replica, ReplicaState, Resident
from lorafleet_operator.core.pods import PodFacts
from lorafleet_operator.core.runtime_arguments import ADMIN_PORT, SERVING_PORT
from lorafleet_operator.errors import RuntimeCallError
from lorafleet_operator.runtime_client import RuntimeClient, RuntimeState

log = structlog.get_logger("pod")

MISSED_SECONDS, IDLE_SECONDS = 1.0, 2.0
"""Between two polls: after one without an answer, and, at least, while nothing happens."""
FIRST_LOOK_SECONDS, LAST_LOOK_SECONDS, LATER = 0.05, 1.0, 1.6
"""While something is loading: soon after it was asked for, then less and less often."""
SILENT_SECONDS = 15.0
"""A pod that has not answered for so long serves nobody; its liveness probe ends it."""


class PodReplica:
    """`changed` is called when what `view()` says matters to a plan; `reported` with every new state.

    `looked_at`: it has been asked at least once, with or without an answer."""

    def __init__(
        self, name: str, facts: PodFacts, token: str, *, changed: Callable[[], None],
        reported: Callable[[PodReplica, RuntimeState | None], None],
    ) -> None:  # fmt: skip
        self.name = name
        self.facts = facts
        self.report: RuntimeState | None = None
        self.client: RuntimeClient | None = None
        self.index = 0
        self.idle_seconds = IDLE_SECONDS
        self._token = token
        self._changed = changed
        self._reported = reported
        self._polling: asyncio.Task[None] | None = None
        self._missed_since: float | None = None
        self._silence = ""
        self._state: ReplicaState = "Starting"
        self._since = time.monotonic()
        self._hurry = asyncio.Event()
        self._turn = asyncio.Lock()
        self._polls = 0
        self._look_in = FIRST_LOOK_SECONDS
        self._view: Replica | None = None
        self.looked_at = False

    def take(self, facts: PodFacts, epoch: int) -> None:
        """What the API says of the pod now, and the epoch to call it under."""
        moved = facts.ip != self.facts.ip or (facts.restarts, facts.uid) != (self.facts.restarts, self.facts.uid)
        self.facts = facts
        if moved and self._polling is not None:
            self._polling.cancel()
            self._polling = None
            self._lose()
        if self.client is not None:
            self.client.epoch = epoch
        if self._polling is None and facts.ip and not facts.leaving:
            self.client = RuntimeClient(f"http://{_host(facts.ip)}:{ADMIN_PORT}", self._token, epoch=epoch)
            self._missed_since = None
            self._polling = asyncio.create_task(self._poll(self.client), name=f"poll {self.name}")

    @property
    def ready(self) -> bool:
        """Does its process say that it serves?"""
        return self._now() == "Ready"

    def view(self, residents: tuple[Resident, ...]) -> Replica:
        """This replica for a plan."""
        facts, report = self.facts, self.report
        state = self._now()
        if state != self._state:
            self._state, self._since = state, time.monotonic()
        host = f"http://{_host(facts.ip)}" if facts.ip else ""
        view = Replica(
            name=self.name, base=facts.base, index=self.index, state=state, spec_hash=facts.spec_hash,
            incarnation=report.incarnation if report else "",
            url=f"{host}:{SERVING_PORT}" if host else "", admin_url=f"{host}:{ADMIN_PORT}" if host else "",
            message=facts.failure or self._silence or (report.message if report and state != "Ready" else ""),
            progress=report.progress if report else 0.0, residents=residents,
            pages_total=report.pages_total if report else 0, pages_free=report.pages_free if report else 0,
            running=report.running if report else 0, waiting=report.waiting if report else 0,
            failures=facts.restarts if state != "Ready" else 0, retry_at=float("inf"), since=self._since,
            chosen=facts.cheapest,
        )  # fmt: skip
        if view != self._view:
            self._view = view
        return self._view  # the same object while nothing changes: what is made of it need not be made again

    async def refresh(self) -> None:
        """Poll once, now; all who ask while a poll is under way share the next. Raises RuntimeCallError."""
        wanted = self._polls + 1
        async with self._turn:
            if self._polls < wanted and self.client is not None:
                self._polls += 1
                self._take(await self.client.state())
        self._look_in = FIRST_LOOK_SECONDS
        self._hurry.set()

    async def close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
            self._polling = None
        self._lose()

    def _now(self) -> ReplicaState:
        if self.facts.leaving or (self.report is not None and self.report.phase == "Draining"):
            return "Draining"
        if self.facts.failure or self._silence or (self.report is not None and self.report.phase == "Failed"):
            return "Failed"
        return "Ready" if self.report is not None and self.report.phase == "Ready" else "Starting"

    async def _poll(self, client: RuntimeClient) -> None:
        try:
            while True:
                asked = time.monotonic()
                try:
                    self._take(await client.state())
                except RuntimeCallError as error:
                    self._miss(error, asked)
                self.looked_at = True
                self._hurry.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pause()):
                        await self._hurry.wait()
        finally:
            await client.close()

    def _pause(self) -> float:
        if self._missed_since is not None and self.report is not None:
            return MISSED_SECONDS
        report = self.report
        if report and report.phase == "Ready" and all(a.state in ("Ready", "Failed") for a in report.adapters):
            return self.idle_seconds
        self._look_in = min(self._look_in * LATER, LAST_LOOK_SECONDS)
        return self._look_in

    def _miss(self, error: RuntimeCallError, asked: float) -> None:
        self._missed_since = self._missed_since or asked
        silent = time.monotonic() - self._missed_since
        if self.report is not None and silent > SILENT_SECONDS and not self._silence:
            self._silence = f"no answer for {silent:.0f} s ({error})"
            log.warning("replica is silent", replica=self.name, why=self._silence)
            self._changed()

    def _take(self, report: RuntimeState) -> None:
        self._missed_since = None
        spoke, self._silence = self._silence, ""
        if report is self.report and not spoke:
            return
        before, self.report = self.report, report
        if before is not None and before.incarnation != report.incarnation:
            self._reported(self, None)  # another process: what failed in the last one is history
        self._reported(self, report)
        if spoke or before is None or _matters(before) != _matters(report):
            self._changed()

    def _lose(self) -> None:
        self.client, self._silence = None, ""
        if self.report is not None:
            self.report = None
            self._reported(self, None)


def _matters(report: RuntimeState) -> tuple[object, ...]:
    """What a plan depends on."""
    return report.phase, report.adapters, report.wants


def _host(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip
