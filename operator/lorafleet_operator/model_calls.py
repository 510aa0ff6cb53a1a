"""Telling replicas that wait for their model where it is: with links made just then, again when the fetch failed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import structlog

from lorafleet_operator.backoff import Backoff
from lorafleet_operator.callee import Callee
from lorafleet_operator.core.objects import Artifact, Ref
from lorafleet_operator.errors import RuntimeCallError, SourceError

log = structlog.get_logger("models")

BACKOFF = Backoff(first=2.0, limit=60.0)
MODEL = "model"


@dataclass(slots=True)
class _Attempt:
    count: int
    task: asyncio.Task[None]
    again_at: float


class ModelCalls:
    """`wake` is called when it is time to try again; `link` makes the links of a base model's artifact."""

    def __init__(
        self, wake: Callable[[], None], link: Callable[[Ref, Artifact], Awaitable[Artifact]], backoff: Backoff = BACKOFF
    ) -> None:
        self._wake = wake
        self._link = link
        self._backoff = backoff
        self._attempts: dict[str, _Attempt] = {}

    def tell(self, replica: Callee, base: Ref, artifact: Artifact) -> None:
        """Tell a replica that wants its model, unless it was told so recently that the last attempt may go on."""
        before, now = self._attempts.get(replica.name), time.monotonic()
        if replica.report is None or replica.report.wants != MODEL:
            return
        if before is not None and (not before.task.done() or now < before.again_at):
            return
        count = before.count + 1 if before is not None else 1
        delay = self._backoff.delay(count, random.random())
        task = asyncio.create_task(self._tell(replica, base, artifact))
        self._attempts[replica.name] = _Attempt(count, task, now + delay)
        asyncio.get_running_loop().call_later(delay, self._wake)

    def keep(self, starting: Iterable[str]) -> None:
        """Only these replicas still start; what was tried with the others is history."""
        names = set(starting)
        for name in [name for name, attempt in self._attempts.items() if name not in names and attempt.task.done()]:
            del self._attempts[name]

    async def close(self) -> None:
        """Give up what is on its way."""
        tasks = [attempt.task for attempt in self._attempts.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, replica: Callee, base: Ref, artifact: Artifact) -> None:
        client = replica.client
        if client is None:
            return
        try:
            await client.put_model(await self._link(base, artifact))
            await replica.refresh()
        except (RuntimeCallError, SourceError) as error:
            log.warning("a replica could not be told where its model is", replica=replica.name, why=str(error))
        else:
            log.info("a replica was told where its model is", replica=replica.name, revision=artifact.revision)
