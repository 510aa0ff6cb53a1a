"""Requests of which one may be what kills replicas: they are tried one at a time, so that it takes no other with it.

When a replica dies, all that ran there is asked again at once. Whoever is lost again before it has brought enough may
be the cause, or may only have been beside it; who is tried alone is told apart. One line for each base model; other
gateways have lines of their own.
"""

from __future__ import annotations

import asyncio

from lorafleet_gateway.core.fleet_model import BaseKey


class SuspectLines:
    """The lines of one gateway, first come, first served."""

    def __init__(self) -> None:
        self._heads: dict[BaseKey, asyncio.Lock] = {}

    def place(self, base: BaseKey) -> Place:
        """A place that is taken when it is wanted."""
        return Place(self._heads.setdefault(base, asyncio.Lock()))


class Place:
    """One request's. At the head of its line from `take` to `leave`."""

    def __init__(self, head: asyncio.Lock) -> None:
        self._head = head
        self._held = False
        self._end: asyncio.TimerHandle | None = None

    async def take(self) -> None:
        """Wait until it is at the head; at once where it is there already."""
        if not self._held:
            await self._head.acquire()
            self._held = True

    def trying(self, seconds: float) -> None:
        """An attempt begins; who has caused no death for so long lets the next one try."""
        if self._held:
            self._end = asyncio.get_running_loop().call_later(seconds, self.leave)

    def stop_trying(self) -> None:
        """The attempt has failed: its time does not run while a replica is looked for."""
        if self._end is not None:
            self._end.cancel()
            self._end = None

    def leave(self) -> None:
        """Let the next one come; safe to call twice."""
        self.stop_trying()
        if self._held:
            self._held = False
            self._head.release()
