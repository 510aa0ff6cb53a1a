"""Asks replicas now and then what their tenants received, and adds it up over processes that come and go.

Totals live in this process: they start anew with it, then with what replicas that still run have given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable

import structlog

from lorafleet_operator.callee import Callee
from lorafleet_operator.core.identity import Ref
from lorafleet_operator.core.usage import Given, Report, Told, Usage, gathered, with_ended
from lorafleet_operator.errors import RuntimeCallError
from lorafleet_operator.timestamps import timestamp

log = structlog.get_logger("usage")

AT_ONCE = 8
FIRST_SECONDS = 5.0
"""A new operator looks for its replicas first: before, it would think that nobody serves."""
WRITES_PER_SECOND = 10.0
"""Each tenant with traffic is a status to write after every round: with many of them rounds are rarer."""


class UsageReports:
    """`replicas` are all there are, each with its base model; `tenants` the names that are declared.

    `changed` is called when `known` differs.
    """

    def __init__(
        self, replicas: Callable[[], Iterable[tuple[Ref, Callee]]], tenants: Callable[[], Collection[str]],
        changed: Callable[[], None], every: float,
    ) -> None:  # fmt: skip
        self.known = Usage()
        self._replicas = replicas
        self._tenants = tenants
        self._changed = changed
        self._every = every
        self._last: dict[str, tuple[Ref, Report]] = {}  # by replica
        self._past: dict[tuple[str, Ref], Given] = {}

    async def follow(self) -> None:
        """Ask until cancelled."""
        await asyncio.sleep(min(FIRST_SECONDS, self._every))
        while True:
            active = await self.ask()
            await asyncio.sleep(max(self._every, active / WRITES_PER_SECOND))

    async def ask(self) -> int:
        """One round; of how many tenants there is news."""
        replicas = {callee.name: (base, callee) for base, callee in self._replicas()}
        room = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(self._ask(base, callee, room) for base, callee in replicas.values()))
        for name in [name for name in self._last if name not in replicas]:
            self._end(*self._last.pop(name))
        if not self._last and not self._past:
            return 0
        told = [Told(base, report, _serves(replicas[name][1])) for name, (base, report) in self._last.items()]
        declared = self._tenants()
        found = {name: had for name, had in gathered(told, self._past).items() if name in declared}
        news = sum(self.known.tenants.get(name) != had for name, had in found.items())
        if not self.known.as_of or found != self.known.tenants:
            self.known = Usage(timestamp(), found)
            self._changed()
        return news

    async def _ask(self, base: Ref, callee: Callee, room: asyncio.Semaphore) -> None:
        client = callee.client
        if client is None or not _serves(callee):
            return
        async with room:
            try:
                report = await client.tenants()
            except RuntimeCallError as error:  # what it told last holds; that it is silent, its polls tell
                log.debug("no word of tenants", replica=callee.name, why=str(error))
                return
        before = self._last.get(callee.name)
        if before is not None and before[1].incarnation != report.incarnation:
            self._end(*before)
        self._last[callee.name] = base, report

    def _end(self, base: Ref, report: Report) -> None:
        """Its process is no more; what it gave stays given."""
        self._past = with_ended(self._past, base, report, self._tenants())


def _serves(callee: Callee) -> bool:
    return callee.report is not None and callee.report.phase in ("Ready", "Draining")
