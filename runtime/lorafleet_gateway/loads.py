"""What this gateway has at each replica right now: attempts in flight, and replicas that have just failed.

Knows no bytes: an attempt is something that can be counted and given up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

from lorafleet_gateway.core.fleet_model import BaseKey, Fleet, Replica, ReplicaKey
from lorafleet_gateway.core.routing import Load, superseded


class Attempt(Protocol):
    """A request at a replica."""

    def abandon(self, why: str) -> None:
        """End the attempt as if the connection had broken."""


class Loads:
    """Counts and marks per replica process. All calls on one event loop; `clock` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float], avoid_seconds: float) -> None:
        self._clock = clock
        self._avoid_seconds = avoid_seconds
        self._attempts: dict[tuple[BaseKey, ReplicaKey], set[Attempt]] = {}
        self._reported: dict[ReplicaKey, int] = {}
        self._avoided_until: dict[ReplicaKey, float] = {}

    @contextlib.contextmanager
    def hold(self, base: BaseKey, replica: Replica, attempt: Attempt) -> Iterator[None]:
        """Count `attempt` at `replica` while the block runs."""
        key = (base, replica.key)
        attempts = self._attempts.setdefault(key, set())
        attempts.add(attempt)
        try:
            yield
        finally:
            attempts.discard(attempt)
            if not attempts and self._attempts.get(key) is attempts:
                del self._attempts[key]

    def in_flight(self, base: BaseKey, key: ReplicaKey) -> int:
        """Our own requests at one replica."""
        return len(self._attempts.get((base, key), ()))

    def of(self, base: BaseKey, replicas: tuple[Replica, ...]) -> dict[ReplicaKey, Load]:
        """The loads of these replicas, for `route`."""
        return {
            replica.key: Load(self.in_flight(base, replica.key), self._reported.get(replica.key, 0))
            for replica in replicas
        }

    def report(self, base: BaseKey, key: ReplicaKey, requests: int) -> None:
        """A replica says how many requests it has, ours included."""
        self._reported[key] = max(0, requests - self.in_flight(base, key))

    def mark_failed(self, key: ReplicaKey) -> None:
        """Other requests keep away from this replica for a moment, where they have a choice."""
        self._avoided_until[key] = self._clock() + self._avoid_seconds

    def avoided(self) -> set[ReplicaKey]:
        """The replicas that failed within the last `avoid_seconds`."""
        if self._avoided_until:
            now = self._clock()
            self._avoided_until = {key: until for key, until in self._avoided_until.items() if until > now}
        return set(self._avoided_until)

    def follow(self, fleet: Fleet) -> None:
        """Give up attempts at processes that the operator has given up, so that a hung replica does not hold
        a client; forget what was reported by replicas that are gone."""
        for (base, key), attempts in list(self._attempts.items()):
            if superseded(fleet.base(base), key):
                for attempt in list(attempts):
                    attempt.abandon("the operator declared the replica failed or replaced")
        present = {replica.key for part in fleet.bases for replica in part.document.replicas}
        self._reported = {key: requests for key, requests in self._reported.items() if key in present}
