"""When a world passes: as soon as something changed, when the plan says so, and now and then."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from lorafleet_operator.core.actions import Plan

FAILED_SECONDS = 1.0
SHORTEST_SECONDS = 0.05
FLOOD, SPARING, LONGEST_PAUSE = 4, 3.0, 5.0
"""When something changed during each of so many passes in a row, changes come in a flood: then passes take a quarter of
the time, for what they decide has to be carried out too. Seconds, at most."""


class Passes:
    """One pass at a time. `attempt` makes one: its plan, or None when there was none (it failed, or others act)."""

    def __init__(
        self, attempt: Callable[[], Awaitable[Plan | None]], *, resync_seconds: float, gather_seconds: float
    ) -> None:
        self._attempt = attempt
        self._resync_seconds = resync_seconds
        self._gather_seconds = gather_seconds
        self._dirty = asyncio.Event()

    def wake(self) -> None:
        """Something changed: pass again soon."""
        self._dirty.set()

    async def run(self) -> None:
        """Pass until cancelled."""
        in_a_row = 0
        while True:
            self._dirty.clear()
            begun = time.thread_time()  # not the time on the wall: while a pass waits for the API, others work
            delay = await self._delay()
            taken = time.thread_time() - begun
            in_a_row = in_a_row + 1 if self._dirty.is_set() else 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):  # asyncio.wait_for may swallow a cancellation in 3.11
                    await self._dirty.wait()
            # One pass for a burst of events; and in a large fleet, where passes take long, a pause as long.
            pause = taken if in_a_row < FLOOD else SPARING * taken
            await asyncio.sleep(max(self._gather_seconds, min(pause, LONGEST_PAUSE)))

    async def _delay(self) -> float:
        """One pass; how many seconds later the next is due at the latest."""
        decided = await self._attempt()
        if decided is None:
            return FAILED_SECONDS
        if decided.wake_at is None:
            return self._resync_seconds
        return min(self._resync_seconds, max(SHORTEST_SECONDS, decided.wake_at - time.monotonic()))
