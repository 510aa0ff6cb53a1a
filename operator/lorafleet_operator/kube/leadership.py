"""Holds the operator's Lease, or waits for it. Its epoch fences every call to a runtime."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from lorafleet_operator.core.lease import Record, Verdict, View, decide, still_mine
from lorafleet_operator.errors import KubeConflict, KubeError, KubeGone
from lorafleet_operator.kube.client import KubeClient
from lorafleet_operator.timestamps import micro_timestamp

log = structlog.get_logger("lease")

NAME = "lorafleet-operator"
DURATION_SECONDS = 9
RENEW_SECONDS, LOOK_SECONDS = 2.0, 1.0
"""Between two writes of the holder; between two looks of who waits."""


class Leadership:
    """`epoch` is 0 while someone else acts. `changed` is called when that changes."""

    def __init__(
        self, client: KubeClient, namespace: str, identity: str, changed: Callable[[], None],
        owner: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._client = client
        self._namespace = namespace
        self._identity = identity
        self._owner = owner
        self._changed = changed
        self._epoch = 0
        self._renewed_at = float("-inf")
        self._view = View()
        self._told = False

    @property
    def epoch(self) -> int:
        """Stops by itself when renewing fails: a successor may be about to start."""
        return self._epoch if still_mine(self._renewed_at, time.monotonic(), DURATION_SECONDS) else 0

    async def run(self) -> None:
        """Renew or watch until cancelled."""
        while True:
            try:
                await self._round()
            except KubeError as error:
                log.warning("cannot write the Lease", why=str(error))
            if bool(self.epoch) != self._told:
                self._told = not self._told
                log.info("this operator acts" if self._told else "another operator acts", epoch=self.epoch)
                self._changed()
            await asyncio.sleep(RENEW_SECONDS if self._told else LOOK_SECONDS)

    async def release(self) -> None:
        """Let a successor start at once."""
        if not self.epoch:
            return
        try:
            lease = await self._client.get("Lease", self._namespace, NAME)
            if lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"]["holderIdentity"] = ""
                await self._client.replace({**lease, "apiVersion": "coordination.k8s.io/v1", "kind": "Lease"})
        except KubeError as error:
            log.warning("cannot release the Lease; a successor waits for it to run out", why=str(error))
        self._epoch = 0

    async def _round(self) -> None:
        before = time.monotonic()  # the lease counts from before the write, not from after it
        lease = await self._read()
        verdict = decide(_record(lease), self._identity, self._view, time.monotonic())
        self._view = verdict.view
        if verdict.act == "wait":
            self._epoch = 0
            return
        try:
            await self._write(lease, verdict)
        except KubeConflict:
            self._epoch = 0  # someone was faster; the next round reads who
            return
        self._epoch, self._renewed_at = verdict.epoch, before

    async def _read(self) -> dict[str, Any] | None:
        try:
            return await self._client.get("Lease", self._namespace, NAME)
        except KubeGone:
            return None

    async def _write(self, lease: dict[str, Any] | None, verdict: Verdict) -> None:
        now = micro_timestamp()
        spec: dict[str, Any] = dict((lease or {}).get("spec") or {})
        if verdict.act != "renew":
            spec["acquireTime"] = now
        spec.update(
            holderIdentity=self._identity, leaseDurationSeconds=DURATION_SECONDS, renewTime=now,
            leaseTransitions=verdict.epoch - 1,
        )  # fmt: skip
        manifest: dict[str, Any] = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec}
        if lease is None:
            owners = [dict(self._owner)] if self._owner is not None else []
            metadata = {"name": NAME, "namespace": self._namespace, "ownerReferences": owners}
            await self._client.create({**manifest, "metadata": metadata})
        else:
            await self._client.replace({**manifest, "metadata": lease["metadata"]})


def _record(lease: dict[str, Any] | None) -> Record | None:
    if lease is None:
        return None
    spec = lease.get("spec") or {}
    return Record(
        holder=spec.get("holderIdentity") or "",
        transitions=int(spec.get("leaseTransitions") or 0),
        duration_seconds=float(spec.get("leaseDurationSeconds") or DURATION_SECONDS),
        version=lease["metadata"].get("resourceVersion") or "",
    )
