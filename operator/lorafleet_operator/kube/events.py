"""Kubernetes Events: what was done about an object, in the plan's own words. The same sentence is not said twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import structlog

from lorafleet_operator.core.actions import Action, LoadAdapter, StopReplica, UnloadAdapter
from lorafleet_operator.core.api import API_VERSIONS
from lorafleet_operator.core.objects import ObjectKey
from lorafleet_operator.core.pods import PodFacts
from lorafleet_operator.errors import KubeError
from lorafleet_operator.kube.client import KubeClient
from lorafleet_operator.kube.store import Store
from lorafleet_operator.timestamps import micro_timestamp, timestamp

log = structlog.get_logger("events")

AGAIN_SECONDS = 600.0
QUEUE = 1000
REASONS = {LoadAdapter: "AdapterLoading", UnloadAdapter: "AdapterUnloading", StopReplica: "ReplicaStopping"}


class Events:
    """A bounded queue: when the API is slow, events are lost before anything waits for them."""

    def __init__(self, client: KubeClient, store: Store, identity: str) -> None:
        self._client = client
        self._store = store
        self._identity = identity
        self._said: dict[tuple[ObjectKey, str], float] = {}
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(QUEUE)

    def actions(self, actions: Iterable[Action], pods: Mapping[str, PodFacts]) -> None:
        """Say what is done; `pods` are the pods by the name of their replica."""
        for action in actions:
            reason = REASONS.get(type(action))
            key = self._about(action, pods)
            if reason and key is not None:
                self.say(key, reason, str(action))

    def say(self, key: ObjectKey, reason: str, message: str, kind: str = "Normal") -> None:
        """Queue one sentence about an object."""
        now = time.monotonic()
        if now - self._said.get((key, message), float("-inf")) < AGAIN_SECONDS or self._queue.full():
            return
        if len(self._said) > 4 * QUEUE:
            self._said = {k: at for k, at in self._said.items() if now - at < AGAIN_SECONDS}
        self._said[key, message] = now
        self._queue.put_nowait(self._event(key, reason, message, kind))

    async def run(self) -> None:
        """Post until cancelled."""
        while True:
            event = await self._queue.get()
            try:
                await self._client.create(event)
            except KubeError as error:
                log.debug("an event is lost", why=str(error))

    def _about(self, action: Action, pods: Mapping[str, PodFacts]) -> ObjectKey | None:
        """The object that an action is about, if it still exists."""
        if isinstance(action, LoadAdapter | UnloadAdapter):
            wire_id = action.adapter.wire_id if isinstance(action, LoadAdapter) else action.adapter_id
            namespace, _, name = wire_id.partition(".")
            key = ObjectKey("LoRAAdapter", namespace, name)
            return key if key in self._store.raw else None
        pod = pods.get(action.replica)
        return ObjectKey("Pod", pod.base.namespace, pod.name) if pod else None

    def _event(self, key: ObjectKey, reason: str, message: str, kind: str) -> dict[str, Any]:
        now = datetime.now(UTC)
        about = {
            "apiVersion": API_VERSIONS.get(key.kind, "v1"), "kind": key.kind, "name": key.name,
            "namespace": key.namespace, "uid": self._store.uid(key),
        }  # fmt: skip
        return {
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"generateName": f"{key.name[:50]}.", "namespace": key.namespace or "default"},
            "involvedObject": about, "type": kind, "reason": reason, "message": message[:1024],
            "source": {"component": "lorafleet-operator"}, "reportingComponent": "lorafleet.dev/operator",
            "reportingInstance": self._identity[:128], "action": reason,
            "firstTimestamp": timestamp(now), "lastTimestamp": timestamp(now), "count": 1,
            "eventTime": micro_timestamp(now),
        }  # fmt: skip
