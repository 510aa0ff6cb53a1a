"""Loads and unloads on their way to the replicas, and when a failed load may be tried again.

One slow runtime blocks no pass: every call is a task of its own, and at most one per (replica, adapter) is on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from lorafleet_operator.backoff import Backoff
from lorafleet_operator.core.objects import Artifact, PlacementState, Ref, Resident
from lorafleet_operator.errors import RuntimeCallError
from lorafleet_operator.runtime_client import AdapterReport, RuntimeClient, RuntimeState

log = structlog.get_logger("adapters")

# The same bytes on the same runtime give the same refusal: only a new revision or a new process makes a difference.
PERMANENT = {"InvalidAdapter", "RankTooHigh", "DigestMismatch"}
PERMANENT_BACKOFF = Backoff(first=60.0, limit=600.0)
TRANSIENT_BACKOFF = Backoff(first=1.0, limit=60.0)
STATES: Mapping[str, PlacementState] = {
    "Pending": "Pending", "Loading": "Loading", "Ready": "Ready", "Draining": "Draining", "Failed": "Failed",
}  # fmt: skip


class Callee(Protocol):
    """What a call needs of a replica, be it a process or a pod."""

    @property
    def name(self) -> str: ...

    @property
    def client(self) -> RuntimeClient | None:
        """None while there is nobody to call. Another client is another process."""
        ...

    @property
    def report(self) -> RuntimeState | None: ...

    async def refresh(self) -> None:
        """Poll once, now. Raises RuntimeCallError."""
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    """The last failed load of one adapter on one replica.

    `reported`: the runtime's own state tells of it too. `retrying`: a new attempt has been accepted since.
    """

    revision: str
    reason: str
    message: str
    count: int
    retry_at: float
    reported: bool
    retrying: bool = False


@dataclass(frozen=True, slots=True)
class _Call:
    revision: str  # "" for an unload
    task: asyncio.Task[None]


class AdapterCalls:
    """Sends loads and unloads, remembers failures. `changed` is called when a plan may come out differently."""

    def __init__(self, changed: Callable[[], None], backoff: Backoff = TRANSIENT_BACKOFF) -> None:
        self._changed = changed
        self._backoff = backoff
        self._calls: dict[tuple[str, str], _Call] = {}
        self._failures: dict[tuple[str, str], Failure] = {}
        self._asked: dict[tuple[str, str], str] = {}  # the revision last asked for

    def load(self, replica: Callee, adapter: Ref, artifact: Artifact, *, pinned: bool) -> None:
        """Ask `replica` for this revision, unless that is already on its way."""
        key = (replica.name, adapter.wire_id)
        if key not in self._calls:
            self._start(key, artifact.revision, self._put(key, replica, artifact, pinned))

    def unload(self, replica: Callee, adapter_id: str) -> None:
        """Ask `replica` to let go of an adapter, unless a call about it is already on its way."""
        key = (replica.name, adapter_id)
        if key not in self._calls:
            self._start(key, "", self._delete(key, replica))

    def reported(self, replica: Callee, state: RuntimeState | None) -> None:
        """Take note of a replica's new state; None: its process is gone, and with it every reason not to try again."""
        if state is None:
            for key in [key for key in {*self._failures, *self._asked} if key[0] == replica.name]:
                self._forget(key)
            return
        for report in state.adapters:
            key = (replica.name, report.id)
            if self._asked.get(key) != report.revision:
                continue  # an older revision's fate decides nothing
            known = self._failures.get(key)
            if report.state == "Failed" and (known is None or known.retrying or known.revision != report.revision):
                self._fail(key, report.revision, report.reason or "LoadFailed", report.message, reported=True)
            elif report.state == "Ready":
                self._failures.pop(key, None)

    def _forget(self, key: tuple[str, str]) -> None:
        self._failures.pop(key, None)
        self._asked.pop(key, None)

    def residents(self, replica: Callee) -> tuple[Resident, ...]:
        """What is on `replica`: its own report, and what is on its way there."""
        reports = replica.report.adapters if replica.report else ()
        residents = [_resident(report) for report in reports if report.state in STATES]
        seen = {(resident.adapter.wire_id, resident.revision) for resident in residents}
        for (name, adapter_id), call in self._calls.items():
            if name == replica.name and call.revision and (adapter_id, call.revision) not in seen:
                residents.append(Resident(_ref(adapter_id), call.revision, "Loading"))
        for key, failure in self._failures.items():
            shown = failure.reported or key in self._calls or (key[1], failure.revision) in seen
            if key[0] == replica.name and not shown:
                ref = _ref(key[1])
                residents.append(Resident(ref, failure.revision, "Failed", failure.reason, failure.message))
        return tuple(residents)

    def retry_at(self, wanted: Mapping[Ref, str]) -> dict[tuple[Ref, str], float]:
        """Not before when, by (adapter, replica); a failure of another revision than `wanted` holds nothing back."""
        return {
            (_ref(adapter_id), name): failure.retry_at
            for (name, adapter_id), failure in self._failures.items()
            if wanted.get(_ref(adapter_id)) == failure.revision
        }

    @property
    def on_their_way(self) -> int:
        """How many calls have no answer yet."""
        return len(self._calls)

    async def close(self) -> None:
        """Give up what is on its way."""
        tasks = [call.task for call in self._calls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, key: tuple[str, str], revision: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._calls[key] = _Call(revision, task)

        def done(_: asyncio.Future[None]) -> None:
            self._calls.pop(key, None)
            self._changed()

        task.add_done_callback(done)

    async def _put(self, key: tuple[str, str], replica: Callee, artifact: Artifact, pinned: bool) -> None:
        client = replica.client
        if client is None:
            return  # it ended meanwhile; the next pass knows
        self._asked[key] = artifact.revision
        before = self._failures.get(key)
        try:
            await client.put_adapter(key[1], artifact, pinned=pinned)
        except RuntimeCallError as error:
            if replica.client is client:  # a process that ended took the failure with it
                self._fail(key, artifact.revision, error.reason, str(error), reported=False)
            return
        if before is not None and self._failures.get(key) is before:  # else a poll has told of this attempt
            self._failures[key] = replace(before, retrying=True)
        await self._look(replica)
        if replica.report is not None:  # a second failure just like the first is no new state, but it counts
            self.reported(replica, replica.report)

    async def _delete(self, key: tuple[str, str], replica: Callee) -> None:
        client = replica.client
        if client is None:
            return
        try:
            gone = await client.delete_adapter(key[1])
        except RuntimeCallError as error:
            log.warning("unload failed", replica=key[0], adapter=key[1], why=str(error))
            return
        if gone:
            self._forget(key)
        await self._look(replica)

    async def _look(self, replica: Callee) -> None:
        """Poll before the call counts as over, so that no pass sees the gap until the next poll."""
        with contextlib.suppress(RuntimeCallError):
            await replica.refresh()

    def _fail(self, key: tuple[str, str], revision: str, reason: str, message: str, *, reported: bool) -> None:
        known = self._failures.get(key)
        count = known.count + 1 if known is not None and known.revision == revision else 1
        backoff = PERMANENT_BACKOFF if reason in PERMANENT else self._backoff
        delay = backoff.delay(count, random.random())
        self._failures[key] = Failure(revision, reason, message, count, time.monotonic() + delay, reported)
        log.warning(
            "adapter failed", replica=key[0], adapter=key[1], reason=reason, why=message, retry_in=round(delay, 1)
        )


def _ref(adapter_id: str) -> Ref:
    namespace, _, name = adapter_id.partition(".")
    return Ref(namespace, name)


def _resident(report: AdapterReport) -> Resident:
    return Resident(
        _ref(report.id), report.revision, STATES[report.state], report.reason, report.message,
        report.rank, report.pages, report.bytes, report.running, report.waiting,
    )  # fmt: skip
