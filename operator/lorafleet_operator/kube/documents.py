"""The gateways' documents in a cluster: a ConfigMap for each base model, a Secret for the tenants."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import time
from collections.abc import Mapping
from typing import Any

import structlog

from lorafleet_operator.core.fleet import differs, fleet_documents, tenants_document, urgent
from lorafleet_operator.core.objects import Desired, Observed, Ref
from lorafleet_operator.core.remembered import Remembered
from lorafleet_operator.errors import KubeError, KubeGone
from lorafleet_operator.kube.client import KubeClient

log = structlog.get_logger("documents")

LABEL = "lorafleet.dev/fleet"
FIELD = "document.json.gz"
TENANTS = "lorafleet-tenants"
GATHER_SECONDS = 0.5
"""What changes no route waits so long for more."""
BYTES_PER_SECOND = 500_000
"""Of each document, gzipped: etcd keeps every version of a large one for minutes."""


class Documents:
    """Writes what differs from what is published; a generation goes on from what the API holds. With their `owner`, all
    documents are gone."""

    def __init__(self, client: KubeClient, namespace: str, owner: Mapping[str, Any] | None = None) -> None:
        self._client = client
        self._namespace = namespace
        self._owner = owner
        self._entries: Remembered[Ref, dict[str, Any]] = Remembered()
        self._published: dict[tuple[str, str], dict[str, Any]] = {}
        self._waiting: dict[tuple[str, str], float] = {}  # since when it differs
        self._free_at: dict[tuple[str, str], float] = {}

    async def read(self) -> None:
        """Learn what is published. Raises KubeError."""
        listed = await self._client.list_in("ConfigMap", self._namespace, f"{LABEL}=true")
        found = [("ConfigMap", item) for item in listed]
        with contextlib.suppress(KubeGone):  # by its name: a list would need the right to read all Secrets here
            found.append(("Secret", await self._client.get("Secret", self._namespace, TENANTS)))
        for kind, item in found:
            if (document := unpacked(item)) is not None:
                self._published[kind, item["metadata"]["name"]] = document

    async def publish(self, desired: Desired, observed: Observed) -> float | None:
        """Bring the documents up to date; what cannot be written now is written at a later pass.

        A document is written at most at BYTES_PER_SECOND: how many seconds until the next that waits may be written."""
        generation = lambda base: self._generation(_key(base.ref))  # noqa: E731
        documents = fleet_documents(desired, observed, generation, self._entries)
        wanted = {_key(ref): document for ref, document in documents.items()}
        tenants = ("Secret", TENANTS)
        wanted[tenants] = tenants_document(desired, self._generation(tenants))
        waits: list[float] = []
        due: list[tuple[str, str]] = []
        for key, document in wanted.items():
            if not differs(document, self._published.get(key)):
                self._waiting.pop(key, None)
            elif (wait := self._wait(key, document)) > 0:
                waits.append(wait)
            else:
                due.append(key)
        gone = [key for key in self._published if key not in wanted] if desired.complete else []
        writes = [*(self._write(key, wanted[key]) for key in due), *(self._drop(key) for key in gone)]
        for failed in await asyncio.gather(*writes, return_exceptions=True):
            if isinstance(failed, KubeError):
                log.warning("cannot publish; gateways keep the last documents", why=str(failed))
            elif failed is not None:
                raise failed
        return min(waits, default=None)

    def _wait(self, key: tuple[str, str], document: Mapping[str, Any]) -> float:
        """Seconds until the document may be written."""
        now = time.monotonic()
        since = self._waiting.setdefault(key, now)
        hold = 0.0 if urgent(document, self._published.get(key)) else GATHER_SECONDS
        return max(since + hold, self._free_at.get(key, 0.0)) - now

    async def _write(self, key: tuple[str, str], document: dict[str, Any]) -> None:
        manifest = packed(*key, self._namespace, document, self._owner)
        await self._client.apply(manifest)
        self._published[key] = document
        self._waiting.pop(key, None)
        self._free_at[key] = time.monotonic() + _size(manifest) / BYTES_PER_SECOND

    async def _drop(self, key: tuple[str, str]) -> None:
        with contextlib.suppress(KubeGone):
            await self._client.delete(key[0], self._namespace, key[1])
        del self._published[key]
        self._free_at.pop(key, None)

    def _generation(self, key: tuple[str, str]) -> int:
        return int(self._published.get(key, {}).get("generation") or 0) + 1


def _key(base: Ref) -> tuple[str, str]:
    return "ConfigMap", f"lorafleet-fleet-{base.wire_id}"


def packed(
    kind: str, name: str, namespace: str, document: Mapping[str, Any], owner: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The object that carries a document. Equal documents give equal bytes."""
    text = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    data = base64.b64encode(gzip.compress(text, mtime=0)).decode()
    field = "binaryData" if kind == "ConfigMap" else "data"
    labels = {LABEL: "true", "app.kubernetes.io/part-of": "lorafleet", "app.kubernetes.io/managed-by": "lorafleet"}
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "labels": labels}
    if owner is not None:
        metadata["ownerReferences"] = [dict(owner)]
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, field: {FIELD: data}}


def _size(manifest: Mapping[str, Any]) -> int:
    return len((manifest.get("binaryData") or manifest["data"])[FIELD])


def unpacked(item: Mapping[str, Any]) -> dict[str, Any] | None:
    """The document that an object carries; None when it carries none that can be read."""
    data = (item.get("binaryData") or item.get("data") or {}).get(FIELD)
    try:
        found = json.loads(gzip.decompress(base64.b64decode(data))) if data else None
    except (ValueError, OSError, EOFError):
        return None
    return found if isinstance(found, dict) else None
