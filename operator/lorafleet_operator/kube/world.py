"""The fleet in a cluster: replicas are pods of Deployments, objects come from the API. The planner decides."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import structlog
from prometheus_client import Gauge, Histogram

from lorafleet_operator.adapter_calls import AdapterCalls
from lorafleet_operator.core.actions import Action, LoadAdapter, Plan, StartReplica, StopReplica, UnloadAdapter
from lorafleet_operator.core.identity import Ref
from lorafleet_operator.core.manifests import ADAPTERS_GATE
from lorafleet_operator.core.objects import Artifact, Desired, Observed
from lorafleet_operator.core.pods import pod_facts, replica_names
from lorafleet_operator.core.scaling import holds_its_adapters
from lorafleet_operator.core.status import statuses
from lorafleet_operator.core.validation import admit
from lorafleet_operator.errors import KubeError, KubeGone
from lorafleet_operator.kube.client import KubeClient
from lorafleet_operator.kube.documents import Documents
from lorafleet_operator.kube.events import Events
from lorafleet_operator.kube.leadership import Leadership
from lorafleet_operator.kube.pod_replica import PodReplica
from lorafleet_operator.kube.remote_sources import RemoteSources, declared_base
from lorafleet_operator.kube.settings import ClusterSettings
from lorafleet_operator.kube.status_writer import StatusWriter
from lorafleet_operator.kube.store import Store
from lorafleet_operator.kube.workloads import Workloads
from lorafleet_operator.passes import Passes
from lorafleet_operator.reconcile import reconcile
from lorafleet_operator.resolver import Resolver

log = structlog.get_logger("fleet")

PASSES = Histogram("lorafleet_operator_pass_seconds", "Time of one pass over the fleet", ("outcome",))
LEADING = Gauge("lorafleet_operator_epoch", "The epoch under which this operator acts; 0 while another one does")


class KubeWorld:
    """Implements `reconcile.World`. Watches feed `store` and wake it; nothing waits for the API but writers."""

    def __init__(self, settings: ClusterSettings, client: KubeClient, store: Store) -> None:
        self.store = store
        self.pods: dict[str, PodReplica] = {}
        self._passes = Passes(
            self._pass, resync_seconds=settings.resync_seconds, gather_seconds=settings.gather_seconds
        )
        self.wake = self._passes.wake
        self.calls = AdapterCalls(self.wake)
        sources = RemoteSources()
        self.resolver = Resolver(self.wake, adapter=sources.adapter, base=declared_base)
        self.writer = StatusWriter(client)
        self.documents = Documents(client, settings.namespace)
        self.leadership = Leadership(client, settings.namespace, settings.identity, self.wake)
        self.events = Events(client, store, settings.identity)
        self.workloads = Workloads(client, store, settings.images, settings.tokens)
        self.last_pass = time.monotonic()
        self._settings = settings
        self._client = client

    def now(self) -> float:
        return time.monotonic()

    async def observe(self) -> tuple[Desired, Observed]:
        """What the watches and polls have brought; asks nobody."""
        await self._follow_pods()
        artifacts = dict(self.resolver.adapters)
        wanted = {ref: found.revision for ref, found in artifacts.items() if isinstance(found, Artifact)}
        observed = Observed(
            replicas={name: pod.view(self.calls.residents(pod)) for name, pod in self.pods.items()},
            artifacts=artifacts,
            base_artifacts=dict(self.resolver.base_models),
            load_retry_at=self.calls.retry_at(wanted),
        )
        return admit(self.store.desired()), observed

    async def execute(self, action: Action) -> None:
        """Begin what the plan says. Pods are started and stopped by their Deployment, which `publish` applies."""
        match action:
            case StartReplica() | StopReplica():
                return
            case LoadAdapter():
                log.info(str(action))
                if pod := self.pods.get(action.replica):
                    self.calls.load(pod, action.adapter, action.artifact, pinned=action.pinned)
            case UnloadAdapter():
                log.info(str(action))
                if pod := self.pods.get(action.replica):
                    self.calls.unload(pod, action.adapter_id)

    async def publish(self, desired: Desired, observed: Observed, plan: Plan) -> None:
        """Apply workloads, open gates, publish documents, queue statuses and events."""
        stops = {action.replica for action in plan.actions if isinstance(action, StopReplica)}
        await self.workloads.ensure(desired, observed, {n: self.pods[n].facts for n in stops if n in self.pods})
        await self._open_gates(observed, plan)
        await self.documents.publish(desired, observed)
        seen = self.store.statuses()
        now_iso = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.writer.offer(statuses(desired, observed, plan, self.writer.known(seen), now_iso), seen)
        self.events.actions(plan.actions)

    async def run(self) -> None:
        """Act until cancelled, whenever the Lease is ours."""
        await self.read_secrets()
        await self.documents.read()
        resolving = self.resolver.follow(lambda: admit(self.store.desired()), self._settings.source_seconds)
        parts = (self.leadership, self._passes, self.writer, self.events)
        loops = (*(part.run() for part in parts), resolving, self._resync())
        tasks = [asyncio.create_task(loop) for loop in loops]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.calls.close()
            await asyncio.gather(*(pod.close() for pod in self.pods.values()))
            await self.leadership.release()

    async def read_secrets(self) -> None:
        """Read the Secrets that tenants name, and no others."""
        wanted = {
            Ref(key.namespace, key.name) for tenant in self.store.desired().tenants.values() for key in tenant.api_keys
        }
        for ref in wanted:
            try:
                found = await self._client.get("Secret", ref.namespace, ref.name)
            except KubeGone:
                changed = self.store.drop("Secret", {"metadata": {"namespace": ref.namespace, "name": ref.name}})
            except KubeError as error:
                log.warning("cannot read a Secret; what it held goes on", secret=str(ref), why=str(error))
                continue
            else:
                changed = self.store.put("Secret", found)
            if changed:
                self.wake()

    async def _pass(self) -> Plan | None:
        self.last_pass = time.monotonic()
        LEADING.set(self.leadership.epoch)
        if not self.store.complete or not self.leadership.epoch:
            return None
        begun, outcome = time.perf_counter(), "error"
        try:
            decided = await reconcile(self)
            outcome = "done"
            return decided
        except Exception:
            log.exception("a pass failed; the fleet is left as it is")
            return None
        finally:
            PASSES.labels(outcome).observe(time.perf_counter() - begun)

    async def _resync(self) -> None:
        """What no watch tells: Secrets, and statuses that someone else overwrote."""
        desired, named, waited = None, None, 0.0
        while True:
            now = self.store.desired()
            if now is not desired:
                desired = now
                self.resolver.wake()
            keys = {key for tenant in now.tenants.values() for key in tenant.api_keys}
            if keys != named or waited >= self._settings.secret_seconds:
                named, waited = keys, 0.0
                await self.read_secrets()
                self.writer.forget()
            await asyncio.sleep(0.25)
            waited += 0.25

    async def _follow_pods(self) -> None:
        found = replica_names(facts for raw in self.store.pods() if (facts := pod_facts(raw)) is not None)
        for name in [name for name in self.pods if name not in found]:
            await self.pods.pop(name).close()
        indexes = {name: index for index, name in enumerate(n for n, facts in found.items() if not facts.leaving)}
        for name, facts in found.items():
            pod = self.pods.get(name)
            if pod is None:
                token = self._settings.tokens["LORAFLEET_ADMIN_TOKEN"]
                pod = PodReplica(name, facts, token, changed=self.wake, reported=self.calls.reported)
                self.pods[name] = pod
            pod.index = indexes.get(name, len(indexes))
            pod.take(facts, self.leadership.epoch)

    async def _open_gates(self, observed: Observed, plan: Plan) -> None:
        """Tell the API which pods hold their adapters: a rolling update goes on when they do."""
        for name, replica in observed.replicas.items():
            facts = self.pods[name].facts
            if facts.gate or not holds_its_adapters(replica, plan):
                continue
            at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            condition = {"type": ADAPTERS_GATE, "status": "True", "reason": "AdaptersLoaded", "lastTransitionTime": at}
            try:
                opened = await self._client.merge_pod_condition(facts.base.namespace, facts.name, condition)
                self.store.update("Pod", opened)
            except KubeError as error:
                log.warning("cannot open a pod's gate; the next pass tries again", pod=name, why=str(error))
