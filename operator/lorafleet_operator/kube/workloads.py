"""Keeps the objects that run base models as they should be: applied when they change, and when someone else changed
them. Decides nothing: manifests come from the core."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence

import structlog

from lorafleet_operator.core.manifests import CHEAPEST, DELETION_COST, workload, workload_name
from lorafleet_operator.core.objects import Artifact, BaseModel, Desired, ObjectKey, Observed, Ref, Replica
from lorafleet_operator.core.pods import PodFacts
from lorafleet_operator.core.rollout import spec_hash
from lorafleet_operator.core.scaling import deployment_replicas
from lorafleet_operator.errors import KubeError
from lorafleet_operator.kube.client import KubeClient
from lorafleet_operator.kube.inference_pools import InferencePools
from lorafleet_operator.kube.settings import ClusterSettings
from lorafleet_operator.kube.store import Store

log = structlog.get_logger("workloads")


class Workloads:
    def __init__(self, client: KubeClient, store: Store, settings: ClusterSettings, pools: InferencePools) -> None:
        self._client = client
        self._store = store
        self._settings = settings
        self._pools = pools
        self._applied: dict[Ref, tuple[str, int]] = {}  # text of the manifests, generation of the Deployment after it

    async def ensure(self, desired: Desired, observed: Observed, stops: Mapping[str, PodFacts]) -> None:
        """Apply what differs, base model by base model; one that the API refuses holds up no other.

        `stops` are the pods that the plan lets go, by the name of their replica."""
        for ref in [ref for ref in self._applied if ref not in desired.base_models]:
            del self._applied[ref]
        mine: dict[Ref, list[Replica]] = defaultdict(list)
        for replica in observed.replicas.values():
            mine[replica.base].append(replica)
        await asyncio.gather(
            *(self._try(base, mine[ref], observed, stops) for ref, base in desired.base_models.items())
        )

    async def _try(
        self, base: BaseModel, mine: Sequence[Replica], observed: Observed, stops: Mapping[str, PodFacts]
    ) -> None:  # fmt: skip
        try:
            await self._ensure(base, mine, observed, stops)
        except KubeError as error:
            log.warning("cannot apply a workload; the next pass tries again", base=str(base.ref), why=str(error))

    async def _ensure(
        self, base: BaseModel, mine: Sequence[Replica], observed: Observed, stops: Mapping[str, PodFacts]
    ) -> None:  # fmt: skip
        ref = base.ref
        artifact = observed.base_artifacts.get(ref)
        uid = self._store.uid(ObjectKey("BaseModel", ref.namespace, ref.name))
        if not isinstance(artifact, Artifact) or not uid:
            return
        hashed = spec_hash(base, artifact)
        count = deployment_replicas(base, mine, stops.keys(), hashed)
        manifests = workload(
            base, uid=uid, spec_hash=hashed, replicas=count, images=self._settings.images,
            tokens=self._settings.tokens, peers=self._settings.peers,
        )  # fmt: skip
        manifests += self._pools.manifests(base, uid)
        text = json.dumps(manifests, sort_keys=True)
        if self._applied.get(ref) == (text, self._generation(ref)):
            return
        for pod in stops.values():
            if pod.base == ref and not pod.cheapest:
                patch = {"metadata": {"annotations": {DELETION_COST: CHEAPEST}}}
                self._store.update("Pod", await self._client.merge("Pod", ref.namespace, pod.name, patch))
        for manifest in manifests:
            applied = await self._client.apply(manifest)
            if manifest["kind"] == "Deployment":
                self._store.put("Deployment", applied)
        log.info("workload applied", base=str(ref), replicas=count, settings=hashed)
        self._applied[ref] = (text, self._generation(ref))

    def _generation(self, ref: Ref) -> int:
        deployment = self._store.raw.get(ObjectKey("Deployment", ref.namespace, workload_name(ref.name)))
        return int(deployment["metadata"].get("generation") or 0) if deployment else -1
