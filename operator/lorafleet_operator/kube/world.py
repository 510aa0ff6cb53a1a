"""The fleet in a cluster: replicas are pods of Deployments, objects come from the API. The planner decides."""

from __future__ import annotations

import asyncio
import time

import structlog
from prometheus_client import Gauge, Histogram

from lorafleet_operator.adapter_calls import AdapterCalls
from lorafleet_operator.artifact_sources.artifact_finder import ArtifactFinder, remote_sources
from lorafleet_operator.artifact_sources.volume_source import VolumeSource
from lorafleet_operator.artifact_sources.web_client import WebClient
from lorafleet_operator.core.actions import Action, LoadAdapter, Plan, StartReplica, StopReplica, UnloadAdapter
from lorafleet_operator.core.manifests import ADAPTERS_GATE
from lorafleet_operator.core.objects import Artifact, Desired, Observed, Ref
from lorafleet_operator.core.pods import pod_facts, replica_names
from lorafleet_operator.core.remembered import Remembered
from lorafleet_operator.core.rollout import spec_hash
from lorafleet_operator.core.scaling import being_loaded, holds_its_adapters
from lorafleet_operator.core.status import Status, statuses
from lorafleet_operator.core.validation import admit
from lorafleet_operator.errors import KubeError
from lorafleet_operator.kube.base_sources import BaseSources
from lorafleet_operator.kube.client import KubeClient
from lorafleet_operator.kube.documents import Documents
from lorafleet_operator.kube.events import Events
from lorafleet_operator.kube.inference_pools import InferencePools
from lorafleet_operator.kube.last_revisions import with_last_revisions
from lorafleet_operator.kube.leadership import Leadership
from lorafleet_operator.kube.links import Links
from lorafleet_operator.kube.named_secrets import NamedSecrets
from lorafleet_operator.kube.pod_replica import IDLE_SECONDS, PodReplica
from lorafleet_operator.kube.settings import ClusterSettings
from lorafleet_operator.kube.status_writer import StatusWriter
from lorafleet_operator.kube.store import Store
from lorafleet_operator.kube.volume_reports import VolumeReports
from lorafleet_operator.kube.workloads import Workloads
from lorafleet_operator.model_calls import ModelCalls
from lorafleet_operator.passes import Passes
from lorafleet_operator.reconcile import reconcile
from lorafleet_operator.resolver import Resolver
from lorafleet_operator.timestamps import timestamp
from lorafleet_operator.usage_reports import UsageReports

log = structlog.get_logger("fleet")

PASSES = Histogram("lorafleet_operator_pass_seconds", "Time of one pass over the fleet", ("outcome",))
FIRST_LOOK_SECONDS = 5.0
"""A new leader waits so long for the first answers of all pods: before, it would think that nobody serves."""
POLLS_PER_SECOND = 25.0
"""While nothing happens, over all pods: a pod that dies is told by its watch, not by a poll."""
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
        self.secrets = NamedSecrets(client, store, settings.secret_seconds, self._secrets_changed)
        self.volumes = VolumeReports(self._ready_pods)
        self._web = WebClient()
        on_volumes = VolumeSource(self.volumes.describe)
        self.sources = ArtifactFinder(
            {**remote_sources(self._web), "pvc": on_volumes, "file": on_volumes}, self.secrets.look
        )
        self.resolver = Resolver(self.wake, adapter=self.sources.adapter, base=BaseSources(self.sources).base)
        links = Links(self.sources, self.desired)
        self.calls = AdapterCalls(self.wake, link=links.adapter)
        self.models = ModelCalls(self.wake, links.model)
        self.usage = UsageReports(
            lambda: ((pod.facts.base, pod) for pod in self.pods.values()), lambda: self.desired().tenants.keys(),
            self.wake, settings.usage_seconds,
        )  # fmt: skip
        self.writer = StatusWriter(client, settings.resync_seconds)
        self.documents = Documents(client, settings.namespace, settings.owner)
        self.leadership = Leadership(client, settings.namespace, settings.identity, self.wake, settings.owner)
        self.events = Events(client, store, settings.identity)
        self.pools = InferencePools(client, settings.pools, settings.picker, self.wake)
        self.workloads = Workloads(client, store, settings, self.pools)
        self.last_pass = time.monotonic()
        self._begun = time.monotonic()
        self._informed = False
        self._admitted: tuple[Desired, Desired] | None = None
        self._statuses: Remembered[Ref, Status] = Remembered()
        self._ready: frozenset[str] = frozenset()
        self._settings = settings
        self._client = client

    def now(self) -> float:
        return time.monotonic()

    async def observe(self) -> tuple[Desired, Observed]:
        """What the watches and polls have brought; asks nobody."""
        desired = self.desired()
        artifacts = with_last_revisions("LoRAAdapter", desired.adapters, self.resolver.adapters, self.store)
        bases = with_last_revisions("BaseModel", desired.base_models, self.resolver.base_models, self.store)
        wanted = {ref: found.revision for ref, found in artifacts.items() if isinstance(found, Artifact)}
        observed = Observed(
            replicas={name: pod.view(self.calls.residents(pod)) for name, pod in self.pods.items()},
            artifacts=artifacts,
            base_artifacts=bases,
            load_retry_at=self.calls.retry_at(wanted),
            pools=self.pools.state,
            usage=self.usage.known,
        )
        return desired, observed

    def desired(self) -> Desired:
        """What is declared, without the objects that rules between objects refuse. Computed once per change."""
        declared = self.store.desired()
        if self._admitted is None or self._admitted[0] is not declared:
            self._admitted = declared, admit(declared)
            self.resolver.declared()
        return self._admitted[1]

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
        self._tell_models(desired, observed)
        await self._open_gates(observed, plan)
        if (wait := await self.documents.publish(desired, observed)) is not None:
            asyncio.get_running_loop().call_later(wait, self.wake)
        seen = self.store.statuses()
        known = self.writer.known(seen)
        self.writer.offer(statuses(desired, observed, plan, known, timestamp(), self._statuses), seen)
        self.events.actions(plan.actions, {name: pod.facts for name, pod in self.pods.items()})

    async def run(self) -> None:
        """Act until cancelled, whenever the Lease is ours."""
        self.volumes.attach()
        await self.secrets.read()
        await self.documents.read()
        resolving = self.resolver.follow(self.desired, self._settings.source_seconds)
        parts = (self.leadership, self._passes, self.writer, self.events)
        followers = (self.secrets, self.pools, self.usage)
        loops = (*(part.run() for part in parts), *(each.follow() for each in followers), resolving)
        tasks = [asyncio.create_task(loop) for loop in loops]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.calls.close()
            await self.models.close()
            await asyncio.gather(*(pod.close() for pod in self.pods.values()))
            await self.leadership.release()
            self._web.close()

    def _tell_models(self, desired: Desired, observed: Observed) -> None:
        """Say to the pods of the current settings where their model is; older ones are about to be replaced."""
        self.models.keep(name for name, pod in self.pods.items() if not pod.ready)
        for pod in self.pods.values():
            base, found = desired.base_models.get(pod.facts.base), observed.base_artifacts.get(pod.facts.base)
            if base is None or not isinstance(found, Artifact) or not found.files:
                continue
            if pod.facts.spec_hash == spec_hash(base, found):
                self.models.tell(pod, base.ref, found)

    def _secrets_changed(self) -> None:
        self.resolver.look_again()
        self.wake()

    def _ready_pods(self, base: Ref) -> list[PodReplica]:
        return [pod for pod in self.pods.values() if pod.facts.base == base and pod.ready]

    async def _pass(self) -> Plan | None:
        self.last_pass = time.monotonic()
        LEADING.set(self.leadership.epoch)
        await self._follow_pods()  # also while another operator acts: a successor knows the fleet already
        if not self.store.complete or not self.leadership.epoch or not self._knows_its_pods():
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

    async def _follow_pods(self) -> None:
        found = replica_names(facts for raw in self.store.pods() if (facts := pod_facts(raw)) is not None)
        for name in [name for name in self.pods if name not in found]:
            await self.pods.pop(name).close()
            self.calls.forget(name)
        indexes = {name: index for index, name in enumerate(n for n, facts in found.items() if not facts.leaving)}
        for name, facts in found.items():
            pod = self.pods.get(name)
            if pod is None:
                token = self._settings.tokens["LORAFLEET_ADMIN_TOKEN"]
                pod = PodReplica(name, facts, token, changed=self.wake, reported=self.calls.reported)
                self.pods[name] = pod
            pod.index = indexes.get(name, len(indexes))
            pod.idle_seconds = max(IDLE_SECONDS, len(found) / POLLS_PER_SECOND)
            pod.take(facts, self.leadership.epoch)
        ready = frozenset(name for name, pod in self.pods.items() if pod.ready)
        if ready - self._ready:
            self.resolver.look_again()  # a new one can tell what lies on its volumes
        self._ready = ready

    def _knows_its_pods(self) -> bool:
        """Has every pod that has an address been asked once? A pod that comes later holds up nothing."""
        if not self._informed:
            asked = all(pod.looked_at for pod in self.pods.values() if pod.client is not None)
            self._informed = asked or time.monotonic() - self._begun > FIRST_LOOK_SECONDS
        return self._informed

    async def _open_gates(self, observed: Observed, plan: Plan) -> None:
        """Tell the API which pods hold their adapters: a rolling update goes on when they do."""
        coming = being_loaded(plan)
        shut = [(name, r) for name, r in observed.replicas.items() if not self.pods[name].facts.gate]
        held = [name for name, replica in shut if holds_its_adapters(replica, coming)]
        await asyncio.gather(*(self._open_gate(name) for name in held))

    async def _open_gate(self, name: str) -> None:
        facts = self.pods[name].facts
        condition = {
            "type": ADAPTERS_GATE, "status": "True", "reason": "AdaptersLoaded", "lastTransitionTime": timestamp(),
        }  # fmt: skip
        try:
            opened = await self._client.merge_pod_condition(facts.base.namespace, facts.name, condition)
            self.store.update("Pod", opened)
        except KubeError as error:
            log.warning("cannot open a pod's gate; the next pass tries again", pod=name, why=str(error))
