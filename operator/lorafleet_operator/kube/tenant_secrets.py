"""The Secrets that tenants name, and no others: read by name when a tenant first names one, and again now and then.

No watch: a watch of Secrets would need the right to read all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from lorafleet_operator.core.identity import Ref
from lorafleet_operator.core.objects import Desired
from lorafleet_operator.errors import KubeError, KubeGone
from lorafleet_operator.kube.client import KubeClient
from lorafleet_operator.kube.store import Store

log = structlog.get_logger("secrets")

LOOK_SECONDS = 0.25
READS_PER_SECOND = 10.0
"""While nothing changes: a rotated key is known after `seconds`, or after (Secrets) / 10 s if that is later."""


class TenantSecrets:
    """Keeps the store's Secrets as the API has them. `changed` is called when one differs."""

    def __init__(self, client: KubeClient, store: Store, seconds: float, changed: Callable[[], None]) -> None:
        self._client = client
        self._store = store
        self._seconds = seconds
        self._changed = changed
        self._read_at: dict[Ref, float] = {}

    async def follow(self) -> None:
        """Read what is new at once, and what is known when its time has come, until cancelled."""
        while True:
            await self.read()
            await asyncio.sleep(LOOK_SECONDS)

    async def read(self) -> None:
        """One round: the Secrets that are new or due; those that no tenant names any more are forgotten."""
        wanted = named(self._store.desired())
        for ref in [ref for ref in self._read_at if ref not in wanted]:
            del self._read_at[ref]
            self._drop(ref)
        due = time.monotonic() - max(self._seconds, len(wanted) / READS_PER_SECOND)
        for ref in sorted(wanted):
            if self._read_at.get(ref, float("-inf")) <= due:
                self._read_at[ref] = time.monotonic()
                await self._read(ref)

    async def _read(self, ref: Ref) -> None:
        try:
            found = await self._client.get("Secret", ref.namespace, ref.name)
        except KubeGone:
            self._drop(ref)
        except KubeError as error:
            log.warning("cannot read a Secret; what it held goes on", secret=str(ref), why=str(error))
        else:
            if self._store.put("Secret", found):
                self._changed()

    def _drop(self, ref: Ref) -> None:
        if self._store.drop("Secret", {"metadata": {"namespace": ref.namespace, "name": ref.name}}):
            self._changed()


def named(desired: Desired) -> frozenset[Ref]:
    """The Secrets that tenants name."""
    return frozenset(Ref(key.namespace, key.name) for tenant in desired.tenants.values() for key in tenant.api_keys)
