"""What replicas say about their load, so that several gateways in front of one fleet do not all pick the same
replica.

Only asked where there is a choice to make; a replica that does not answer counts as having no more than our
own requests."""

from __future__ import annotations

import asyncio
import contextlib
import re

from lorafleet_gateway.core.fleet_model import READY, BaseKey, Replica
from lorafleet_gateway.errors import Lost
from lorafleet_gateway.fleet import FleetFolder
from lorafleet_gateway.loads import Loads
from lorafleet_gateway.upstream import Upstream

_REQUESTS = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{[^\n]*\})? ([0-9.e+]+)", re.MULTILINE)


def requests_in(metrics: str) -> int:
    """Running and waiting requests of a replica, from its Prometheus text under vLLM's names; 0 when it has
    none."""
    return int(sum(float(value) for value in _REQUESTS.findall(metrics)))


async def watch(fleet: FleetFolder, upstream: Upstream, loads: Loads, seconds: float) -> None:
    """Ask every replica that has a ready sibling, all at once, every `seconds`, until cancelled."""
    while True:
        await asyncio.sleep(seconds)
        asked: list[tuple[BaseKey, Replica]] = []
        for part in fleet.fleet.bases:
            ready = [replica for replica in part.document.replicas if replica.state == READY]
            asked += [(part.base.key, replica) for replica in ready] if len(ready) > 1 else []
        await asyncio.gather(*(_ask(upstream, loads, base, replica) for base, replica in asked))


async def _ask(upstream: Upstream, loads: Loads, base: BaseKey, replica: Replica) -> None:
    with contextlib.suppress(Lost):
        loads.report(base, replica.key, requests_in(await upstream.metrics(replica)))
