"""Looks now and then whether the cluster knows InferencePools, if they are asked for: nothing depends on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import structlog

from lorafleet_operator.core.inference_pools import GROUP_VERSION, EndpointPicker, inference_pool
from lorafleet_operator.core.objects import BaseModel
from lorafleet_operator.core.observed import Pools
from lorafleet_operator.errors import KubeError
from lorafleet_operator.kube.client import KubeClient

log = structlog.get_logger("pools")

LOOK_SECONDS = 30.0


class InferencePools:
    """`state` is what statuses tell; `changed` is called when it is another one."""

    def __init__(
        self, client: KubeClient, wanted: bool, picker: EndpointPicker | None, changed: Callable[[], None]
    ) -> None:
        self.state: Pools = "missing" if wanted else "off"
        self._client = client
        self._picker = picker
        self._changed = changed

    def manifests(self, base: BaseModel, uid: str) -> list[dict[str, Any]]:
        """The base model's pool, where the cluster has room for one."""
        return [inference_pool(base, uid, self._picker)] if self.state == "there" else []

    async def follow(self) -> None:
        """Look, and look again, until cancelled."""
        while self.state != "off":
            try:
                known = "inferencepools" in await self._client.served(GROUP_VERSION)
            except KubeError as error:
                log.warning("cannot read which kinds the cluster knows", why=str(error))
            else:
                self._take("there" if known else "missing")
            await asyncio.sleep(LOOK_SECONDS)

    def _take(self, state: Pools) -> None:
        if state != self.state:
            self.state = state
            log.info("InferencePools are made" if state == "there" else "the cluster knows no InferencePool any more")
            self._changed()
