"""The fleet on this machine: replicas are processes, objects come from YAML files. The planner decides."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import time

import structlog

from lorafleet_operator.adapter_calls import AdapterCalls
from lorafleet_operator.config import Settings
from lorafleet_operator.core.actions import (
    Action,
    LoadAdapter,
    Plan,
    StartReplica,
    StopReplica,
    UnloadAdapter,
)
from lorafleet_operator.core.objects import Artifact, Desired, Observed
from lorafleet_operator.folder import Folder
from lorafleet_operator.local import processes
from lorafleet_operator.local.commands import gateway_command
from lorafleet_operator.local.gateway_process import GatewayProcess
from lorafleet_operator.local.local_sources import LocalSources
from lorafleet_operator.local.publisher import Publisher
from lorafleet_operator.local.replicas import Launch, LocalReplica
from lorafleet_operator.local.state_folder import StateFolder
from lorafleet_operator.passes import Passes
from lorafleet_operator.reconcile import reconcile
from lorafleet_operator.resolver import Resolver
from lorafleet_operator.usage_reports import UsageReports

log = structlog.get_logger("fleet")


class LocalWorld:
    """Implements `reconcile.World`. One event wakes the loop: a file, a child, a runtime's state or a finished call."""

    def __init__(self, settings: Settings, folder: Folder, state: StateFolder) -> None:
        self.settings = settings
        self.folder = folder
        self.replicas: dict[str, LocalReplica] = {}
        self._passes = Passes(self._pass, resync_seconds=settings.resync_seconds, gather_seconds=0.02)
        self.wake = self._passes.wake
        self._sources = LocalSources(lambda: folder.desired)
        self.calls = AdapterCalls(self.wake, link=self._sources.link)
        self.resolver = Resolver(self.wake, adapter=self._sources.adapter, base=self._sources.base)
        self.usage = UsageReports(
            lambda: ((r.base, r) for r in self.replicas.values()), lambda: folder.desired.tenants.keys(),
            self.wake, settings.usage_seconds,
        )  # fmt: skip
        self.publisher = Publisher(state, folder, settings.gateway_url)
        self.last = (folder.desired, Observed())  # what the last pass saw, for people who watch
        self._state = state
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

    async def observe(self) -> tuple[Desired, Observed]:
        """What is declared, and what this process knows of its children. Touches no disk and no network."""
        artifacts = dict(self.resolver.adapters)
        wanted = {ref: found.revision for ref, found in artifacts.items() if isinstance(found, Artifact)}
        observed = Observed(
            replicas={name: replica.view(self.calls.residents(replica)) for name, replica in self.replicas.items()},
            artifacts=artifacts,
            base_artifacts=dict(self.resolver.base_models),
            load_retry_at=self.calls.retry_at(wanted),
            usage=self.usage.known,
        )
        return self.folder.desired, observed

    async def execute(self, action: Action) -> None:
        """Begin what the plan says; whatever takes time goes on in the background and wakes the next pass."""
        log.info(str(action))
        match action:
            case StartReplica():
                await self._start(action)
            case StopReplica():
                replica = self.replicas.get(action.replica)
                meant = replica is not None and action.incarnation in ("", replica.incarnation)
                if replica is not None and meant and replica.name not in self._stops:
                    task = asyncio.create_task(self._stop(replica, action.drain_seconds))
                    self._stops[replica.name] = task
            case LoadAdapter():
                if replica := self.replicas.get(action.replica):
                    self.calls.load(replica, action.adapter, action.artifact, pinned=action.pinned)
            case UnloadAdapter():
                if replica := self.replicas.get(action.replica):
                    self.calls.unload(replica, action.adapter_id)

    async def publish(self, desired: Desired, observed: Observed, plan: Plan) -> None:
        """Write the gateway's documents and the statuses that changed."""
        self.last = (desired, observed)
        self.publisher.publish(desired, observed, plan)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then end every process in order: the gateway first, then the replicas."""
        await self._pass()  # the gateway starts with this fleet's documents, not with an old one's
        desired = lambda: self.folder.desired  # noqa: E731  # read anew on every round
        resolving = self.resolver.follow(desired, self.settings.resync_seconds)
        loops = (self._scan(), self._passes.run(), self.gateway.run(), resolving, self.usage.follow(), stop.wait())
        tasks: list[asyncio.Task[object]] = [asyncio.create_task(loop) for loop in loops]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # a loop ends only by an error of ours: say it, after the order below
        finally:
            await self._shut_down(tasks)

    def kill(self) -> None:
        """End every process now; `run` then returns soon."""
        for child in [self.gateway.child, *(replica.child for replica in self.replicas.values())]:
            if child is not None:
                child.signal(signal.SIGKILL)

    async def _shut_down(self, tasks: list[asyncio.Task[object]]) -> None:
        scan, passes, gateway, *others = tasks
        for task in (scan, passes, *others):
            task.cancel()
        await self.gateway.stop()
        await asyncio.gather(scan, passes, gateway, *others, return_exceptions=True)
        await self.calls.close()
        drain = self.settings.drain_seconds
        await asyncio.gather(*(replica.stop(drain) for replica in self.replicas.values()))
        await asyncio.gather(*self._stops.values(), return_exceptions=True)
        self.replicas.clear()
        self._sources.close()
        with contextlib.suppress(OSError):  # a full disk must not hide what ended the fleet
            await self.publish(*await self.observe(), Plan())

    async def _pass(self) -> Plan | None:
        try:
            return await reconcile(self)
        except Exception:
            # One object that trips a rule must not end the serving of all the others.
            log.exception("a pass failed; the fleet is left as it is")
            return None

    async def _scan(self) -> None:
        while True:
            await asyncio.sleep(self.settings.scan_seconds)
            try:
                changed = await asyncio.to_thread(self.folder.scan)
            except OSError as error:
                log.warning("cannot look at the YAML; what it declared goes on", why=str(error))
                continue
            if changed:
                for problem in self.folder.news():
                    log.warning("problem in the YAML; the last good version stays", problem=str(problem))
                self.resolver.declared()
                self.resolver.look_again()  # a Secret may have changed, which the same source is read with
                self.wake()
            for log_path in [self.gateway.log_path, *(replica.log_path for replica in self.replicas.values())]:
                processes.bound(log_path)

    async def _stop(self, replica: LocalReplica, drain_seconds: float) -> None:
        try:
            await replica.stop(drain_seconds)
        finally:
            self.replicas.pop(replica.name, None)
            self._stops.pop(replica.name, None)
            self.wake()

    async def _start(self, action: StartReplica) -> None:
        replica = self.replicas.get(action.replica)
        if replica is None:
            replica = LocalReplica(action.replica, self._launch, changed=self.wake, reported=self.calls.reported)
            self.replicas[action.replica] = replica
        await replica.start(action, {name: other.ports for name, other in self.replicas.items()})
