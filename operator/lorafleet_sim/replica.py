"""One replica in memory: it starts, loads, drains and crashes by the clock that it is given. Knows no randomness."""

from __future__ import annotations

from dataclasses import dataclass, field

from lorafleet_operator.core.actions import StartReplica
from lorafleet_operator.core.objects import Artifact, Ref, Replica, ReplicaState, Resident

FIRST_RETRY, LAST_RETRY = 1.0, 60.0
PAGE_BYTES = 4096


def backoff(failures: int) -> float:
    """Seconds before the next attempt after so many failures in a row."""
    return float(min(FIRST_RETRY * 2.0 ** (failures - 1), LAST_RETRY))


@dataclass(slots=True)
class Load:
    """One adapter revision on its way or there."""

    revision: str
    pages: int
    ready_at: float
    fails_with: str = ""

    def resident(self, adapter: Ref, now: float) -> Resident:
        """What the replica reports about it."""
        if now < self.ready_at:
            return Resident(adapter, self.revision, "Loading")
        if self.fails_with:
            return Resident(adapter, self.revision, "Failed", self.fails_with, "it was made to fail")
        return Resident(adapter, self.revision, "Ready", rank=8, pages=self.pages, bytes=self.pages * PAGE_BYTES)


@dataclass(slots=True)
class SimReplica:
    """The process behind one name. `loads` holds, per adapter, the serving revision and the one to come."""

    start: StartReplica
    incarnation: str
    ready_at: float
    pages_total: int
    since: float
    state: ReplicaState = "Starting"
    failures: int = 0
    retry_at: float = 0.0
    gone_at: float | None = None
    loads: dict[Ref, list[Load]] = field(default_factory=dict)

    def advance(self, now: float) -> None:
        """Let time pass: become ready, and let new revisions take over from old ones."""
        if self.state == "Starting" and now >= self.ready_at:
            self.state, self.since, self.failures = "Ready", self.ready_at, 0
        for loads in self.loads.values():
            arrived = [load for load in loads if now >= load.ready_at and not load.fails_with]
            if arrived:
                loads[:] = [load for load in loads if load is arrived[-1] or now < load.ready_at]

    def next_event(self, now: float) -> list[float]:
        """When something about this replica changes by itself."""
        times = [load.ready_at for loads in self.loads.values() for load in loads]
        times += [self.ready_at] if self.state == "Starting" else []
        times += [self.gone_at] if self.gone_at is not None else []
        return [time for time in times if time > now]

    def crash(self, now: float) -> None:
        """The process dies with all that it held."""
        self.failures += 1
        self.state, self.since, self.retry_at = "Failed", now, now + backoff(self.failures)
        self.loads.clear()

    def load(self, adapter: Ref, artifact: Artifact, ready_at: float, fails_with: str) -> None:
        """Start to load a revision beside what is there. Idempotent by revision; a failure may be tried again."""
        if self.state != "Ready":
            return
        loads = self.loads.setdefault(adapter, [])
        loads[:] = [load for load in loads if not (load.revision == artifact.revision and load.fails_with)]
        if any(load.revision == artifact.revision for load in loads):
            return
        pages = max(1, artifact.bytes // PAGE_BYTES)
        room = "" if pages <= self.pages_free else "NoRoom"
        loads.append(Load(artifact.revision, pages, ready_at, fails_with or room))

    @property
    def pages_free(self) -> int:
        used = sum(load.pages for loads in self.loads.values() for load in loads if not load.fails_with)
        return self.pages_total - used

    def view(self, now: float) -> Replica:
        """The replica as its operator sees it."""
        residents = [load.resident(adapter, now) for adapter, loads in self.loads.items() for load in loads]
        return Replica(
            name=self.start.replica, base=self.start.base.ref, index=self.start.index, state=self.state,
            spec_hash=self.start.spec_hash, incarnation=self.incarnation, url=f"sim://{self.start.replica}",
            residents=tuple(residents), pages_total=self.pages_total, pages_free=self.pages_free,
            failures=self.failures, retry_at=self.retry_at, since=self.since,
        )  # fmt: skip
