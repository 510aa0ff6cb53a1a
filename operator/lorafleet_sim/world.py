"""A fleet in memory with the production planner on top: virtual time, latencies, crashes and stale reads from a seed.

Knows how long things take and what goes wrong, and nothing of what ought to be done about it.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from lorafleet_operator.core.actions import Action, LoadAdapter, Plan, StartReplica, StopReplica, UnloadAdapter
from lorafleet_operator.core.objects import (
    Artifact,
    ArtifactFile,
    Desired,
    Observed,
    Ref,
    Unresolved,
)
from lorafleet_operator.reconcile import reconcile
from lorafleet_sim.replica import PAGE_BYTES, SimReplica, backoff


@dataclass(frozen=True, slots=True)
class Laws:
    """How this world behaves. Probabilities are per opportunity; durations are virtual seconds."""

    start_seconds: float = 5.0
    load_seconds: float = 1.0
    drain_seconds: float = 2.0
    pages: int = 4096
    adapter_pages: int = 12
    crash_rate: float = 0.0  # crashes of one replica per second
    failed_starts: float = 0.0  # chance that a start ends in a crash
    failed_loads: float = 0.0  # chance that a load fails for a reason that passes
    stale: float = 0.0  # chance that an observation is an old one
    stale_views: int = 8  # how many observations back it may be
    refused: Mapping[Ref, str] = field(default_factory=dict)  # adapter -> permanent reason


class SimWorld:
    """Implements reconcile.World. `desired` may be replaced at any time, as users do."""

    def __init__(self, desired: Desired, laws: Laws | None = None, seed: int = 0) -> None:
        self.desired = desired
        self.laws = laws or Laws()
        self.replicas: dict[str, SimReplica] = {}
        self.unresolved: dict[Ref, Unresolved] = {}  # by adapter or base model: sources that are away
        self.plans: list[Plan] = []
        self._random = random.Random(seed)
        self._now = 0.0
        self._processes = 0
        self._retries: dict[tuple[Ref, str], tuple[int, float]] = {}
        self._past: deque[Observed] = deque(maxlen=self.laws.stale_views)

    def now(self) -> float:
        """Virtual seconds since the world began."""
        return self._now

    async def observe(self) -> tuple[Desired, Observed]:
        """What is, or with the chance of `laws.stale` what was."""
        self._past.append(self.truth())
        stale = self._random.random() < self.laws.stale
        return self.desired, self._random.choice(self._past) if stale else self._past[-1]

    async def execute(self, action: Action) -> None:
        """Do it, idempotently; what cannot be done is not done."""
        match action:
            case StartReplica():
                self._start(action)
            case StopReplica():
                self._stop(action)
            case LoadAdapter():
                self._load(action)
            case UnloadAdapter():
                namespace, _, name = action.adapter_id.partition(".")
                if action.replica in self.replicas:
                    self.replicas[action.replica].loads.pop(Ref(namespace, name), None)

    async def publish(self, desired: Desired, observed: Observed, plan: Plan) -> None:
        """Keep the plan, for whoever judges the run."""
        self.plans.append(plan)

    def truth(self) -> Observed:
        """The world as it is at this moment."""
        return Observed(
            replicas={name: replica.view(self._now) for name, replica in sorted(self.replicas.items())},
            artifacts={ref: self._resolve(ref, a.source.uri) for ref, a in self.desired.adapters.items()},
            base_artifacts={ref: self._resolve(ref, b.source.uri) for ref, b in self.desired.base_models.items()},
            load_retry_at={key: at for key, (_, at) in self._retries.items()},
        )

    def advance(self, seconds: float) -> None:
        """Let time pass; replicas crash by `laws.crash_rate`."""
        self._now += seconds
        for name, replica in list(self.replicas.items()):
            if replica.gone_at is not None and self._now >= replica.gone_at:
                del self.replicas[name]
                continue
            replica.advance(self._now)
            self._note_failures(name, replica)
            if replica.state == "Ready" and self._random.random() < self.laws.crash_rate * seconds:
                self.crash(name)

    def crash(self, name: str) -> None:
        """Kill a replica's process."""
        self.replicas[name].crash(self._now)
        self._retries = {key: value for key, value in self._retries.items() if key[1] != name}

    def next_event(self, plan: Plan) -> float:
        """The next time at which anything may be different; a second from now when nothing is known to come."""
        times = [time for replica in self.replicas.values() for time in replica.next_event(self._now)]
        times += [plan.wake_at] if plan.wake_at is not None and plan.wake_at > self._now else []
        return min([*times, self._now + 1.0])

    def _start(self, action: StartReplica) -> None:
        known = self.replicas.get(action.replica)
        if known is not None and known.state not in ("Failed", "Gone"):
            return
        self._processes += 1
        replica = SimReplica(
            action, f"process-{self._processes}", self._now + self.laws.start_seconds, self.laws.pages, self._now,
            failures=known.failures if known is not None else 0,
        )  # fmt: skip
        self.replicas[action.replica] = replica
        if self._random.random() < self.laws.failed_starts:
            replica.crash(self._now)

    def _stop(self, action: StopReplica) -> None:
        replica = self.replicas.get(action.replica)
        if replica is None or action.incarnation not in ("", replica.incarnation):
            return
        drains = min(action.drain_seconds, self.laws.drain_seconds)
        if replica.state == "Ready" and drains > 0:
            replica.state, replica.since, replica.gone_at = "Draining", self._now, self._now + drains
        else:
            del self.replicas[action.replica]

    def _load(self, action: LoadAdapter) -> None:
        replica = self.replicas.get(action.replica)
        if replica is None:
            return
        reason = self.laws.refused.get(action.adapter, "")
        if not reason and self._random.random() < self.laws.failed_loads:
            reason = "FetchFailed"
        replica.load(action.adapter, action.artifact, self._now + self.laws.load_seconds, reason)

    def _note_failures(self, name: str, replica: SimReplica) -> None:
        for adapter, loads in replica.loads.items():
            for load in loads:
                key = adapter, name
                if not load.fails_with:
                    self._retries.pop(key, None)
                elif self._now >= load.ready_at and self._retries.get(key, (0, 0.0))[1] < load.ready_at:
                    failures = self._retries.get(key, (0, 0.0))[0] + 1
                    self._retries[key] = failures, load.ready_at + backoff(failures)

    def _resolve(self, ref: Ref, uri: str) -> Artifact | Unresolved:
        return self.unresolved.get(ref) or artifact_of(uri, self.laws.adapter_pages * PAGE_BYTES)


def artifact_of(uri: str, size: int) -> Artifact:
    """The artifact that this world finds at a source: its content is its URI."""
    digest = hashlib.sha256(uri.encode()).hexdigest()
    return Artifact(f"sha256:{digest}", (ArtifactFile("adapter_model.safetensors", uri, digest, size),))


async def run(world: SimWorld, seconds: float) -> None:
    """Reconcile for so many virtual seconds, at every event and at least once per second."""
    end = world.now() + seconds
    while world.now() < end:
        plan = await reconcile(world)
        world.advance(max(min(world.next_event(plan), end) - world.now(), 0.01))


async def settle(world: SimWorld, limit: float = 600.0) -> None:
    """Reconcile until an up-to-date plan is empty and nothing is under way. Raises TimeoutError after `limit`."""
    end = world.now() + limit
    while world.now() < end:
        plan = await reconcile(world)
        moving = any(replica.next_event(world.now()) for replica in world.replicas.values())
        if not plan.actions and plan.wake_at is None and not moving:
            return
        world.advance(max(world.next_event(plan) - world.now(), 0.01))
    raise TimeoutError(f"the fleet has not settled after {limit} s; the last plan was {world.plans[-1]}")
