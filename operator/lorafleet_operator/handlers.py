"""Watches, by kopf: every handler only puts what it was told into the store and wakes the world.

The only file that knows kopf. Handlers of raw events, so no annotation, finalizer or retry of kopf's is ever written;
what runs for an object that is gone is unwanted, and the next pass takes it away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import kopf
import structlog
from prometheus_client import Counter

from lorafleet_operator.core.manifests import BASE_MODEL_LABEL
from lorafleet_operator.core.objects import ObjectKey
from lorafleet_operator.errors import KubeError, KubeGone
from lorafleet_operator.kube.client import KubeClient
from lorafleet_operator.kube.settings import ClusterSettings
from lorafleet_operator.kube.store import Store
from lorafleet_operator.kube.webhook import Webhook
from lorafleet_operator.kube.world import KubeWorld

log = structlog.get_logger("watch")

WATCHED = {
    "BaseModel": ("lorafleet.dev", "v1alpha1", "basemodels"),
    "LoRAAdapter": ("lorafleet.dev", "v1alpha1", "loraadapters"),
    "Tenant": ("lorafleet.dev", "v1alpha1", "tenants"),
    "Namespace": ("", "v1", "namespaces"),
    "Pod": ("", "v1", "pods"),
    "Deployment": ("apps", "v1", "deployments"),
}
CLUSTER_SCOPED = ("Tenant", "Namespace")
OURS = ("Pod", "Deployment")
SECOND_LOOK_SECONDS = 10.0
STALLED_LISTS = 2
STALE_PASS_SECONDS = 60.0

NO_DEFINITION = (
    "the cluster knows no {kind}: install its CustomResourceDefinition, by the chart's crds.install or by "
    "kubectl apply --server-side -f crds/"
)

MISSED = Counter("lorafleet_operator_missed_changes", "Changes that a list found and no watch had told", ("kind",))


class Watches:
    """Feeds the store: kopf's watches at once, a list of everything now and then against what a watch lost."""

    def __init__(
        self, settings: ClusterSettings, client: KubeClient, store: Store, changed: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._client = client
        self._store = store
        self._changed = changed
        self._stalled = 0

    @property
    def stalled(self) -> bool:
        """Did two lists in a row know more than the watches?"""
        return self._stalled >= STALLED_LISTS

    def registry(self) -> kopf.OperatorRegistry:
        """The handlers."""
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(_login)
        for kind, (group, version, plural) in WATCHED.items():
            labels = {BASE_MODEL_LABEL: kopf.PRESENT} if kind in OURS else None
            kopf.on.event(group, version, plural, labels=labels, id=plural, registry=registry, param=kind)(self._told)
        return registry

    async def list_all(self) -> None:
        """Read everything, and drop what is there no longer. Raises KubeError."""
        missed = 0
        for kind in WATCHED:
            before = {key for key in self._store.raw if key.kind == kind}
            first = not self._store.complete
            try:
                async for item in self._listed(kind):
                    before.discard(ObjectKey(kind, item["metadata"].get("namespace") or "", item["metadata"]["name"]))
                    if self._store.put(kind, item) and not first:
                        missed += 1
                        MISSED.labels(kind).inc()
            except KubeGone as error:
                raise KubeGone(f"{error}: {NO_DEFINITION.format(kind=kind)}", status=error.status) from error
            for key in before:
                self._store.drop(kind, {"metadata": {"namespace": key.namespace, "name": key.name}})
        self._store.complete = True
        self._stalled = self._stalled + 1 if missed else 0
        self._changed()

    async def _listed(self, kind: str) -> AsyncIterator[dict[str, Any]]:
        selector = BASE_MODEL_LABEL if kind in OURS else ""
        everywhere = kind in CLUSTER_SCOPED or not self._settings.namespaces
        for namespace in ("",) if everywhere else self._settings.namespaces:
            async for page in self._client.pages(kind, namespace, selector):
                for item in page:
                    yield item

    async def relist(self) -> None:
        """A second look soon (what went between the first list and the first watch), then one now and then."""
        pause = SECOND_LOOK_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = self._settings.relist_seconds
            try:
                await self.list_all()
            except KubeError as error:
                log.warning("cannot list; the watches go on", why=str(error))

    async def _told(self, *, type: str | None, body: kopf.Body, param: Any = "", **_: Any) -> None:  # noqa: A002
        document = dict(body)
        take = self._store.drop if type == "DELETED" else self._store.put
        if take(param, document):
            self._changed()


async def run(settings: ClusterSettings, client: KubeClient, stop: asyncio.Event) -> None:
    """The operator, until `stop` is set: watches, Lease, passes. Raises KubeError when it cannot even list."""
    store = Store()
    world = KubeWorld(settings, client, store)
    watches = Watches(settings, client, store, world.wake)
    registry = watches.registry()

    @kopf.on.probe(id="pass", registry=registry)
    def pass_age(**_: Any) -> str:
        age = time.monotonic() - world.last_pass
        if age > STALE_PASS_SECONDS:
            raise kopf.PermanentError(f"the last pass was {age:.0f} s ago")
        if watches.stalled:
            raise kopf.PermanentError("lists find changes that no watch has told")
        return f"{age:.1f}"

    await watches.list_all()
    ended = asyncio.Event()
    operator = kopf.operator(
        registry=registry, settings=_kopf_settings(), standalone=True, stop_flag=ended,
        clusterwide=not settings.namespaces, namespaces=settings.namespaces,
        liveness_endpoint=f"http://0.0.0.0:{settings.health_port}/healthz",
    )  # fmt: skip
    works = [operator, world.run(), watches.relist(), stop.wait()]
    if settings.webhook is not None:
        works.append(Webhook(settings.webhook, store, settings.namespaces).run())
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        ended.set()
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks[1:], return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await tasks[0]


class _NoDiffs(kopf.DiffBaseStorage):
    """Handlers of raw events are told no differences, so nothing is copied to find any: that was half of an event."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        return None

    def store(self, **_: Any) -> None:
        raise NotImplementedError("nothing is ever handled that would be stored")


def _kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.watching.server_timeout, settings.watching.client_timeout = 300, 330
    settings.networking.request_timeout = 15
    settings.posting.enabled = False  # Events are ours, in the planner's words
    settings.posting.level = logging.CRITICAL
    return settings


def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    return kopf.login_via_client(**kwargs)
