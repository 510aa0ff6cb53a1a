"""Looks now and then at what the cluster's CustomResourceDefinitions know, and says once which one is old."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog

from lorafleet_operator.core import definitions
from lorafleet_operator.core.api import GROUP_VERSION
from lorafleet_operator.errors import KubeError
from lorafleet_operator.kube.client import PLURALS, KubeClient

log = structlog.get_logger("definitions")

LOOK_SECONDS = 60.0
UPGRADE = (
    "upgrade the definition: helm upgrade with crds.install, or kubectl apply --server-side -f crds/ of this release"
)


class Definitions:
    """`fitting` is the status that a definition has room for."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._schemas: dict[str, definitions.Schema] = {}
        self._told: set[tuple[str, str]] = set()
        self.old: set[str] = set()

    async def follow(self) -> None:
        """Look, and look again, until cancelled. Whoever may not look takes the definitions to be of this release."""
        while True:
            try:
                self.take(definitions.schemas(await self._client.openapi(GROUP_VERSION)))
            except KubeError as error:
                log.info("cannot read what the definitions know; they count as current", why=str(error))
            await asyncio.sleep(LOOK_SECONDS)

    def take(self, schemas: Mapping[str, definitions.Schema]) -> None:
        """Compare with what this release reads."""
        if schemas == self._schemas:
            return
        self._schemas, self.old = dict(schemas), set()
        for kind, schema in schemas.items():
            for path in definitions.unreadable(kind, schema):
                self._tell(kind, path, "nobody can set it")

    def fitting(self, kind: str, status: Mapping[str, Any]) -> Mapping[str, Any]:
        """The status without what the cluster's definition of its kind does not know; itself if it fits."""
        schema = self._schemas.get(kind)
        if schema is None:
            return status
        fitted, lost = definitions.fitting(status, schema)
        for path in lost:
            self.old.add(kind)
            self._tell(kind, path, "statuses go without it")
        return fitted if lost else status

    def _tell(self, kind: str, path: str, means: str) -> None:
        if (kind, path) not in self._told:
            self._told.add((kind, path))
            name = f"{PLURALS[kind][1]}.{definitions.GROUP}"
            log.warning("a CustomResourceDefinition is older than this operator", definition=name, lacks=path,
                        means=means, do=UPGRADE)  # fmt: skip
