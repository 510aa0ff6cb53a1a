"""The fleet on this machine: replicas are processes, objects come from YAML files. Decides nothing: the planner does."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable

import structlog

from lorafleet_operator import processes
from lorafleet_operator.adapter_calls import AdapterCalls
from lorafleet_operator.commands import gateway_command
from lorafleet_operator.config import Settings
from lorafleet_operator.core.actions import Action, LoadAdapter, Plan, StartReplica, StopReplica, UnloadAdapter
from lorafleet_operator.core.objects import Artifact, Desired, Observed, Replica
from lorafleet_operator.folder import Folder
from lorafleet_operator.gateway_process import GatewayProcess
from lorafleet_operator.publisher import Publisher
from lorafleet_operator.reconcile import reconcile
from lorafleet_operator.replicas import Launch, LocalReplica
from lorafleet_operator.resolver import Resolver
from lorafleet_operator.state_folder import StateFolder

log = structlog.get_logger("fleet")


class LocalWorld:
    """Implements `reconcile.World`. One event wakes the loop: a file, a child, a runtime's state or a finished call."""

    def __init__(self, settings: Settings, folder: Folder, state: StateFolder) -> None:
        self.settings = settings
        self.folder = folder
        self.replicas: dict[str, LocalReplica] = {}
        self.calls = AdapterCalls(self.wake)
        self.resolver = Resolver(self.wake)
        self.publisher = Publisher(state, folder)
        self.last_plan = Plan()
        self._state = state
        self._dirty = asyncio.Event()
        self._stops: dict[str, asyncio.Task[None]] = {}
        serving, admin = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        self._launch = Launch(
            settings.runtime_command, state.logs, serving, admin, log_format=settings.log_format,
            poll_seconds=settings.poll_seconds,
        )  # fmt: skip
        self.gateway = GatewayProcess(
            gateway_command(
                settings.gateway_command, state.fleet, host=settings.host, port=settings.port,
                log_format=settings.log_format,
            ),
            settings.gateway_url, state.log("gateway"), serving, self.wake,
        )  # fmt: skip

    def now(self) -> float:
        return time.monotonic()

    def wake(self) -> None:
        """Something changed: pass again soon."""
        self._dirty.set()

    async def observe(self) -> tuple[Desired, Observed]:
        """What is declared, and what this process knows of its children. Touches no disk and no network."""
        artifacts = dict(self.resolver.adapters)
        wanted = {ref: found.revision for ref, found in artifacts.items() if isinstance(found, Artifact)}
        observed = Observed(
            replicas={name: self._view(replica) for name, replica in self.replicas.items()},
            artifacts=artifacts,
            base_artifacts=dict(self.resolver.base_models),
            load_retry_at=self.calls.retry_at(wanted),
        )
        return self.folder.desired, observed

    async def execute(self, action: Action) -> None:
        """Begin what the plan says; whatever takes time goes on in the background and wakes the next pass."""
        log.info(str(action))
        match action:
            case StartReplica():
                replica = self.replicas.get(action.replica)
                if replica is None:
                    replica = LocalReplica(action.replica, self._launch, changed=self.wake, reported=self.calls.reported)
                    self.replicas[action.replica] = replica
                await replica.start(action, {name: other.ports for name, other in self.replicas.items()})
            case StopReplica():
                if action.replica in self.replicas and action.replica not in self._stops:
                    task = asyncio.create_task(self._stop(action.replica, action.drain_seconds))
                    self._stops[action.replica] = task
            case LoadAdapter():
                if replica := self.replicas.get(action.replica):
                    self.calls.load(replica, action.adapter, action.artifact, pinned=action.pinned)
            case UnloadAdapter():
                if replica := self.replicas.get(action.replica):
                    self.calls.unload(replica, action.adapter_id)

    async def publish(self, desired: Desired, observed: Observed, plan: Plan) -> None:
        """Write the gateway's documents and the statuses that changed."""
        self.last_plan = plan
        self.publisher.publish(desired, observed, self.now())

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then end every process in order: gateway first, then the replicas."""
        tasks = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("scan", self._scan()),
                ("resolve", self.resolver.follow(lambda: self.folder.desired, self.settings.resync_seconds)),
                ("passes", self._passes()),
            )
        ]
        gateway: asyncio.Task[None] | None = None
        try:
            await self._first_publication(stop, tasks)
            gateway = asyncio.create_task(self.gateway.run(), name="gateway")
            waiting = asyncio.create_task(stop.wait())
            await asyncio.wait([waiting, gateway, *tasks], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            _raise_first(tasks)
        finally:
            await self._shut_down(tasks, gateway)

    async def _passes(self) -> None:
        while True:
            self._dirty.clear()
            try:
                plan = await reconcile(self)
                delay = self.settings.resync_seconds
                if plan.wake_at is not None:
                    delay = min(delay, max(0.05, plan.wake_at - self.now()))
            except Exception:
                # One object that trips the planner must not end the serving of all the others.
                log.exception("a pass failed; the fleet is left as it is")
                delay = self.settings.resync_seconds
                await asyncio.sleep(0.5)
            await _wait(self._dirty, delay)
            await asyncio.sleep(0.02)       # one pass for a burst of events

    async def _scan(self) -> None:
        while True:
            await asyncio.sleep(self.settings.scan_seconds)
            if await asyncio.to_thread(self.folder.scan):
                for problem in self.folder.news():
                    log.warning("problem in the YAML; its last good version stays", problem=str(problem))
                self.resolver.wake()
                self.wake()
            for replica in self.replicas.values():
                processes.bound(replica.log_path)
            processes.bound(self.gateway.log_path)

    async def _stop(self, name: str, drain_seconds: float) -> None:
        try:
            await self.replicas[name].stop(drain_seconds)
        finally:
            self.replicas.pop(name, None)
            self._stops.pop(name, None)
            self.wake()

    def _view(self, replica: LocalReplica) -> Replica:
        return replica.view(self.calls.residents(replica))
