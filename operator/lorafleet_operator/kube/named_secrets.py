"""The Secrets that tenants and sources name, and no others: read by name when one is first named, and again
now and then.

No watch: a watch of Secrets would need the right to read all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from lorafleet_operator.core.identity import Ref
from lorafleet_operator.core.objects import Desired, Secret, Unresolved
from lorafleet_operator.errors import KubeError, KubeGone, KubeRefused
from lorafleet_operator.kube.client import KubeClient
from lorafleet_operator.kube.store import Store

log = structlog.get_logger("secrets")

LOOK_SECONDS = 0.25
READS_PER_SECOND = 10.0
"""While nothing changes: a rotated key is known after `seconds`, or after (Secrets) / 10 s if that is later."""
FORBIDDEN = "the operator may not read Secret {ref}: add {namespace} to the chart's rbac.tenantSecretNamespaces"


class NamedSecrets:
    """Keeps the store's Secrets as the API has them. `changed` is called when one differs, or why there is none."""

    def __init__(self, client: KubeClient, store: Store, seconds: float, changed: Callable[[], None]) -> None:
        self._client = client
        self._store = store
        self._seconds = seconds
        self._changed = changed
        self._read_at: dict[Ref, float] = {}
        self._lacking: dict[Ref, Unresolved] = {}

    def look(self, ref: Ref) -> Secret | Unresolved | None:
        """The Secret as last read, why it cannot be read, or None before its first reading. Any thread may ask."""
        return self._lacking.get(ref) or self._store.secret(ref)

    async def follow(self) -> None:
        """Read what is new at once, and what is known when its time has come, until cancelled."""
        while True:
            await self.read()
            await asyncio.sleep(LOOK_SECONDS)

    async def read(self) -> None:
        """One round: the Secrets that are new or due; those that nobody names any more are forgotten."""
        wanted = named(self._store.desired())
        for ref in [ref for ref in self._read_at if ref not in wanted]:
            del self._read_at[ref]
            self._lacking.pop(ref, None)
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
            self._lack(ref, "SecretNotFound", f"there is no Secret {ref}: create it")
            self._drop(ref)
        except KubeRefused as error:
            if error.status == 403:
                self._lack(ref, "SecretForbidden", FORBIDDEN.format(ref=ref, namespace=ref.namespace))
            log.warning("may not read a Secret; what it held goes on", secret=str(ref), why=str(error))
        except KubeError as error:
            log.warning("cannot read a Secret; what it held goes on", secret=str(ref), why=str(error))
        else:
            mended = self._lacking.pop(ref, None) is not None
            if self._store.put("Secret", found) or mended:
                self._changed()

    def _lack(self, ref: Ref, reason: str, message: str) -> None:
        told, self._lacking[ref] = self._lacking.get(ref), Unresolved(reason, message)
        if told != self._lacking[ref]:
            self._changed()

    def _drop(self, ref: Ref) -> None:
        if self._store.drop("Secret", {"metadata": {"namespace": ref.namespace, "name": ref.name}}):
            self._changed()


def named(desired: Desired) -> frozenset[Ref]:
    """The Secrets with tenants' keys, and those with the credentials of sources."""
    keys = (key for tenant in desired.tenants.values() for key in tenant.api_keys)
    declared = [*(a.source for a in desired.adapters.values()), *(b.source for b in desired.base_models.values())]
    sources = (source.secret for source in declared if source.secret is not None)
    return frozenset(Ref(key.namespace, key.name) for key in (*keys, *sources))
