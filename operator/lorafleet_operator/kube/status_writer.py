"""Writes statuses, newest only: a status that changes again before it was written is written once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import structlog

from lorafleet_operator.core.objects import ObjectKey
from lorafleet_operator.core.tenant_status import only_usage_differs
from lorafleet_operator.errors import KubeError, KubeGone
from lorafleet_operator.kube.client import KubeClient
from lorafleet_operator.kube.definitions import Definitions
from lorafleet_operator.usage_reports import WRITES_PER_SECOND

log = structlog.get_logger("status")

Status = Mapping[str, Any]
WRITERS = 4
RETRY_SECONDS = 2.0
GATHER_SECONDS = 0.5
"""A status waits so long for what follows at once: resolved, loading, ready are one write."""
USAGE_SECONDS = 1 / WRITES_PER_SECOND


class StatusWriter:
    """`known` is what the API holds as far as we know; `offer` what it should hold.

    News of usage alone wait in a queue of their own, at most one a `USAGE_SECONDS`: thousands of tenants with traffic
    hold up nobody who waits for an adapter.
    Every `trust_seconds`, what was written is compared with what watches show: whoever else wrote is put right.
    """

    def __init__(self, client: KubeClient, trust_seconds: float) -> None:
        self._client = client
        self._trust_seconds = trust_seconds
        self._definitions = Definitions(client)
        self._written: dict[ObjectKey, Status] = {}
        self._pending: dict[ObjectKey, Status] = {}  # in order of their due times
        self._due: dict[ObjectKey, float] = {}
        self._usage: dict[ObjectKey, Status] = {}
        self._used = asyncio.Event()
        self._woken = asyncio.Event()

    def known(self, seen: Mapping[ObjectKey, Status]) -> dict[ObjectKey, Status]:
        """The last statuses: those that we wrote, and for other objects those that a watch has shown."""
        for key in [key for key in self._written if key not in seen]:
            del self._written[key]
        return {**seen, **self._written, **self._usage, **self._pending}

    def offer(self, statuses: Mapping[ObjectKey, Status], seen: Mapping[ObjectKey, Status]) -> None:
        """Queue what differs. Objects that the API no longer has are left out."""
        for key, status in statuses.items():
            if key not in seen:
                self._usage.pop(key, None)
                self._take(key)
                continue
            if key.kind in self._definitions.old:
                status = self._definitions.fitting(key.kind, status)
            shown, written = seen[key], self._written.get(key)
            if written is not shown and written == shown:
                self._written[key] = shown  # held once
            last = self._pending.get(key) or self._usage.get(key) or written or shown
            if status is last or status == last:
                continue
            if key not in self._pending and only_usage_differs(status, last):
                self._usage[key] = status
                self._used.set()
            else:
                self._usage.pop(key, None)
                self._queue(key, status)

    def forget(self) -> None:
        """Compare with what watches show from now on."""
        self._written.clear()

    async def run(self) -> None:
        """Write until cancelled."""
        writers = (self._write_all() for _ in range(WRITERS))
        await asyncio.gather(self._definitions.follow(), self._follow_watches(), self._let_usage_pass(), *writers)

    async def _follow_watches(self) -> None:
        while True:
            await asyncio.sleep(self._trust_seconds)
            self.forget()

    async def _let_usage_pass(self) -> None:
        while True:
            if not self._usage:
                self._used.clear()
                await self._used.wait()
                continue
            key = next(iter(self._usage))
            self._queue(key, self._usage.pop(key))
            await asyncio.sleep(USAGE_SECONDS)

    def _queue(self, key: ObjectKey, status: Status) -> None:
        self._pending[key] = status
        self._due.setdefault(key, time.monotonic() + GATHER_SECONDS)
        self._woken.set()

    async def _write_all(self) -> None:
        while True:
            if not self._pending:
                self._woken.clear()
                await self._woken.wait()
                continue
            key = next(iter(self._pending))
            if (wait := self._due[key] - time.monotonic()) > 0:
                await asyncio.sleep(wait)
                continue
            status = self._definitions.fitting(key.kind, self._take(key) or {})
            if status == self._written.get(key):
                continue  # it came back to what it was
            self._written[key] = status
            try:
                await self._client.apply_status(key.kind, key.namespace, key.name, status)
            except KubeGone:
                self._written.pop(key, None)
            except KubeError as error:
                log.warning("cannot write a status; it is tried again", object=str(key), why=str(error))
                self._written.pop(key, None)
                self._pending.setdefault(key, self._usage.pop(key, status))
                self._due.setdefault(key, time.monotonic() + GATHER_SECONDS)
                await asyncio.sleep(RETRY_SECONDS)

    def _take(self, key: ObjectKey) -> Status | None:
        self._due.pop(key, None)
        return self._pending.pop(key, None)
