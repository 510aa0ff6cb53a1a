"""Loads and unloads on their way to the replicas, and when a failed load may be tried again.

One slow runtime blocks no pass: every call is a task of its own, and at most one per (replica, adapter) is on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace

import structlog

from lorafleet_operator.backoff import Backoff
from lorafleet_operator.callee import Callee
from lorafleet_operator.core.objects import Artifact, PlacementState, Ref, Resident
from lorafleet_operator.errors import RuntimeCallError, SourceError
from lorafleet_operator.runtime_client import AdapterReport, RuntimeState

log = structlog.get_logger("adapters")

# The same bytes on the same runtime give the same refusal: only a new revision or a new process makes a difference.
PERMANENT = {"InvalidAdapter", "RankTooHigh", "DigestMismatch"}
PERMANENT_BACKOFF = Backoff(first=60.0, limit=600.0)
TRANSIENT_BACKOFF = Backoff(first=1.0, limit=60.0)
CALLS_AT_ONCE = 8
"""Loads that one replica is asked for at a time: a runtime answers quickly but loads one after the other anyway."""
STATES: Mapping[str, PlacementState] = {
    "Pending": "Pending", "Loading": "Loading", "Ready": "Ready", "Draining": "Draining", "Failed": "Failed",
}  # fmt: skip


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


@dataclass(slots=True)
class _Dealings:
    """With one replica, by the adapter's wire id; `asked` is the revision last asked for."""

    calls: dict[str, _Call] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    shown: tuple[RuntimeState | None, tuple[Resident, ...]] = (None, ())
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CALLS_AT_ONCE))


async def as_found(adapter: Ref, artifact: Artifact) -> Artifact:
    """For artifacts whose files a runtime can fetch from where they were found."""
    return artifact


class AdapterCalls:
    """Sends loads and unloads, remembers failures. `changed` is called when a plan may come out differently.

    `link` is asked just before each load for links that work now. It may raise SourceError.
    """

    def __init__(
        self, changed: Callable[[], None], backoff: Backoff = TRANSIENT_BACKOFF,
        link: Callable[[Ref, Artifact], Awaitable[Artifact]] = as_found,
    ) -> None:  # fmt: skip
        self._changed = changed
        self._backoff = backoff
        self._link = link
        self._replicas: dict[str, _Dealings] = {}

    def load(self, replica: Callee, adapter: Ref, artifact: Artifact, *, pinned: bool) -> None:
        """Ask `replica` for this revision, unless that is already on its way."""
        if adapter.wire_id not in self._with(replica).calls:
            self._start(replica, adapter.wire_id, artifact.revision, self._put(replica, adapter, artifact, pinned))

    def unload(self, replica: Callee, adapter_id: str) -> None:
        """Ask `replica` to let go of an adapter, unless a call about it is already on its way."""
        if adapter_id not in self._with(replica).calls:
            self._start(replica, adapter_id, "", self._delete(replica, adapter_id))

    def reported(self, replica: Callee, state: RuntimeState | None) -> None:
        """Take note of a replica's new state; None: its process is gone, and with it every reason not to try again."""
        dealings = self._with(replica)
        if state is None:
            dealings.failures.clear()
            dealings.asked.clear()
            return
        for report in state.adapters:
            if dealings.asked.get(report.id) != report.revision:
                continue  # an older revision's fate decides nothing
            known = dealings.failures.get(report.id)
            if report.state == "Failed" and (known is None or known.retrying or known.revision != report.revision):
                reason = report.reason or "LoadFailed"
                self._fail(replica, report.id, report.revision, reason, report.message, reported=True)
            elif report.state == "Ready":
                dealings.failures.pop(report.id, None)

    def forget(self, name: str) -> None:
        """The replica of this name is gone for good."""
        if name in self._replicas and not self._replicas[name].calls:
            del self._replicas[name]

    def residents(self, replica: Callee) -> tuple[Resident, ...]:
        """What is on `replica`: its own report, and what is on its way there."""
        dealings, report = self._with(replica), replica.report
        if dealings.shown[0] is not report:
            reports = report.adapters if report else ()
            dealings.shown = report, tuple(_resident(told) for told in reports if told.state in STATES)
        residents = dealings.shown[1]
        if not dealings.calls and not dealings.failures:
            return residents
        seen = {(resident.adapter.wire_id, resident.revision) for resident in residents}
        more = [
            Resident(_ref(adapter_id), call.revision, "Loading")
            for adapter_id, call in dealings.calls.items()
            if call.revision and (adapter_id, call.revision) not in seen
        ]
        seen |= {(resident.adapter.wire_id, resident.revision) for resident in more}
        for adapter_id, failure in dealings.failures.items():
            shown = failure.reported or adapter_id in dealings.calls or (adapter_id, failure.revision) in seen
            if not shown:
                ref = _ref(adapter_id)
                more.append(Resident(ref, failure.revision, "Failed", failure.reason, failure.message))
        return (*residents, *more)

    def retry_at(self, wanted: Mapping[Ref, str]) -> dict[tuple[Ref, str], float]:
        """Not before when, by (adapter, replica); a failure of another revision than `wanted` holds nothing back."""
        return {
            (_ref(adapter_id), name): failure.retry_at
            for name, dealings in self._replicas.items()
            for adapter_id, failure in dealings.failures.items()
            if wanted.get(_ref(adapter_id)) == failure.revision
        }

    @property
    def on_their_way(self) -> int:
        """How many calls have no answer yet."""
        return sum(len(dealings.calls) for dealings in self._replicas.values())

    async def close(self) -> None:
        """Give up what is on its way."""
        tasks = [call.task for dealings in self._replicas.values() for call in dealings.calls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _with(self, replica: Callee) -> _Dealings:
        return self._replicas.setdefault(replica.name, _Dealings())

    def _start(self, replica: Callee, adapter_id: str, revision: str, work: Coroutine[None, None, None]) -> None:
        calls, task = self._with(replica).calls, asyncio.create_task(work)
        calls[adapter_id] = _Call(revision, task)

        def done(_: asyncio.Future[None]) -> None:
            calls.pop(adapter_id, None)
            self._changed()

        task.add_done_callback(done)

    async def _put(self, replica: Callee, adapter: Ref, artifact: Artifact, pinned: bool) -> None:
        client, dealings, adapter_id = replica.client, self._with(replica), adapter.wire_id
        if client is None:
            return  # it ended meanwhile; the next pass knows
        dealings.asked[adapter_id] = artifact.revision
        before = dealings.failures.get(adapter_id)
        try:
            async with dealings.room:
                await client.put_adapter(adapter_id, await self._link(adapter, artifact), pinned=pinned)
        except (RuntimeCallError, SourceError) as error:
            if replica.client is client:  # a process that ended took the failure with it
                self._fail(replica, adapter_id, artifact.revision, error.reason, str(error), reported=False)
            return
        if before is not None and dealings.failures.get(adapter_id) is before:  # else a poll has told of this attempt
            dealings.failures[adapter_id] = replace(before, retrying=True)
        await self._look(replica)
        if replica.report is not None:  # a second failure just like the first is no new state, but it counts
            self.reported(replica, replica.report)

    async def _delete(self, replica: Callee, adapter_id: str) -> None:
        client, dealings = replica.client, self._with(replica)
        if client is None:
            return
        try:
            gone = await client.delete_adapter(adapter_id)
        except RuntimeCallError as error:
            log.warning("unload failed", replica=replica.name, adapter=adapter_id, why=str(error))
            return
        if gone:
            dealings.failures.pop(adapter_id, None)
            dealings.asked.pop(adapter_id, None)
        await self._look(replica)

    async def _look(self, replica: Callee) -> None:
        """Poll before the call counts as over, so that no pass sees the gap until the next poll."""
        with contextlib.suppress(RuntimeCallError):
            await replica.refresh()

    def _fail(
        self, replica: Callee, adapter_id: str, revision: str, reason: str, message: str, *, reported: bool
    ) -> None:  # fmt: skip
        failures = self._with(replica).failures
        known = failures.get(adapter_id)
        count = known.count + 1 if known is not None and known.revision == revision else 1
        backoff = PERMANENT_BACKOFF if reason in PERMANENT else self._backoff
        delay = backoff.delay(count, random.random())
        failures[adapter_id] = Failure(revision, reason, message, count, time.monotonic() + delay, reported)
        log.warning(
            "adapter failed", replica=replica.name, adapter=adapter_id, reason=reason, why=message,
            retry_in=round(delay, 1),
        )  # fmt: skip


def _ref(adapter_id: str) -> Ref:
    namespace, _, name = adapter_id.partition(".")
    return Ref(namespace, name)


def _resident(report: AdapterReport) -> Resident:
    return Resident(
        _ref(report.id), report.revision, STATES[report.state], report.reason, report.message,
        report.rank, report.pages, report.bytes, report.running, report.waiting,
    )  # fmt: skip
