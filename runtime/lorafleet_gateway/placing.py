"""Where one request goes next, and until when it may look: `core.routing` over time.

Knows no bytes. Two deadlines: a short one to find a first replica, and a longer one, from the loss, to find
another."""

from __future__ import annotations

import random
from collections.abc import Callable

from lorafleet_gateway.config import Limits
from lorafleet_gateway.core.fleet_model import ReplicaKey
from lorafleet_gateway.core.naming import Target
from lorafleet_gateway.core.routing import Choice, Unavailable, route
from lorafleet_gateway.errors import (
    ApiError,
    AttemptFailed,
    Lost,
    Moved,
    NotHere,
    Unreachable,
    model_not_found,
    model_not_ready,
    replica_failed,
    replica_killer,
)
from lorafleet_gateway.fleet import FleetFolder
from lorafleet_gateway.loads import Loads
from lorafleet_gateway.suspects import SuspectLines

RETRY_AFTER = 2


class Placing:
    """One request's search for replicas. Call `next`; then `failed`, or `progressed` whenever it has brought
    something; at last `close`."""

    def __init__(
        self,
        target: Target,
        fleet: FleetFolder,
        loads: Loads,
        limits: Limits,
        lines: SuspectLines,
        clock: Callable[[], float],
        seed: int,
    ) -> None:
        self._target = target
        self._fleet = fleet
        self._loads = loads
        self._limits = limits
        self._place = lines.place(target.base)
        self._clock = clock
        self._seed = seed
        self._deadline = clock() + limits.place_seconds
        self._backoff = limits.backoff_seconds
        self._excluded: set[ReplicaKey] = set()
        self._failure: AttemptFailed | None = None
        self._losses = 0
        self._extended = False
        self._preferred = ""
        self._revision: str | None = None
        self._begun = False

    def begun(self, choice: Choice) -> None:
        """The client has its first bytes, made by this revision; no other may go on with them."""
        self._begun = True
        self._revision = choice.revision or None

    def progressed(self, tokens: int) -> None:
        """The replica has brought something new, by now so many tokens: the next search is a new one, and after
        enough of them its losses are forgiven. Who dies after each single token is not."""
        if tokens >= self._limits.forgiving_tokens:
            self._losses = 0
            self._place.leave()
        self._extended = False
        self._failure = None
        self._preferred = ""
        self._backoff = self._limits.backoff_seconds
        self._excluded.clear()

    def failed(self, choice: Choice, failure: AttemptFailed) -> None:
        """Note a failed attempt. Raises ApiError 502 when too many replicas were lost over this one
        request."""
        self._place.stop_trying()
        self._excluded.add(choice.replica.key)
        self._failure = failure
        if isinstance(failure, Moved):
            self._preferred = failure.to
            self._extend()
        elif isinstance(failure, Lost):
            self._loads.mark_failed(choice.replica.key)
            if failure.accepted:
                self._extend()
                self._losses += 1
                if self._losses >= self._limits.losses:
                    raise replica_killer(self._target.served_name, self._losses, str(failure))

    def close(self) -> None:
        """The request has ended, in whatever way."""
        self._place.leave()

    async def next(self) -> Choice:
        """The replica to ask. Waits while there is none, and for its turn when it may be what kills replicas;
        raises ApiError 404, 502 or 503 when there will be none."""
        if self._losses >= self._limits.suspect_losses:
            begun = self._clock()
            await self._place.take()
            self._deadline += self._clock() - begun
        choice = await self._found()
        self._place.trying(self._limits.suspect_seconds)
        return choice

    async def _found(self) -> Choice:
        while True:
            fleet = self._fleet.fleet.base(self._target.base)
            found = route(
                fleet,
                self._target.adapter_id,
                self._loads.of(self._target.base, fleet.document.replicas) if fleet else {},
                seed=self._seed,
                excluded=self._excluded,
                avoided=self._loads.avoided(),
                preferred=self._preferred,
                revision=self._revision,
            )
            if isinstance(found, Choice):
                return found
            remaining = self._deadline - self._clock()
            if found.gone or remaining <= 0 or (found.failed and not self._begun):
                raise self._give_up(found)
            # Jitter, or all requests of a dead replica come back in one moment.
            await self._fleet.wait_changed(min(self._backoff * random.uniform(0.5, 1.0), remaining))
            self._backoff = min(self._backoff * 2, self._limits.backoff_most_seconds)
            self._excluded.clear()

    def _extend(self) -> None:
        if not self._extended:
            self._deadline = self._clock() + self._limits.resume_seconds
            self._extended = True

    def _give_up(self, found: Unavailable) -> ApiError:
        name = self._target.served_name
        if found.gone and not self._begun:
            return model_not_found(name)
        if isinstance(self._failure, Unreachable) and not self._begun:
            return model_not_ready(name, str(self._failure), RETRY_AFTER)  # no replica ever had it: ask again
        if self._begun or isinstance(self._failure, Lost):
            return replica_failed(name, f"{self._failure}; then {found.why}")
        if isinstance(self._failure, NotHere):
            return model_not_ready(name, str(self._failure), self._failure.retry_after or RETRY_AFTER)
        return model_not_ready(name, found.why, RETRY_AFTER)
