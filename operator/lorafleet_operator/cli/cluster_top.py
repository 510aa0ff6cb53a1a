"""`kubectl lorafleet top`: every replica's own metrics, read through the API server, so that no port is opened."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from typing import Any

from lorafleet_operator.cli.live_table import Exposition, show
from lorafleet_operator.cli.operator import configuration
from lorafleet_operator.cli.top import view_of
from lorafleet_operator.core.manifests import BASE_MODEL_LABEL
from lorafleet_operator.core.runtime_arguments import SERVING_PORT
from lorafleet_operator.errors import KubeError
from lorafleet_operator.kube.client import KubeClient

AT_ONCE = 8


def run(options: argparse.Namespace) -> int:
    """Show until Ctrl-C, or once. Raises LorafleetError."""
    client = KubeClient(configuration(options.kubeconfig))

    async def read() -> list[Exposition]:
        return await expositions(client, options.namespace or "", options.base_model)

    try:
        return asyncio.run(show(read, view_of(options.what), options, rates=options.what == "tenants"))
    finally:
        client.close()


async def expositions(client: KubeClient, namespace: str, base_model: str | None) -> list[Exposition]:
    """Of the pods of all base models, or of one."""
    selector = f"{BASE_MODEL_LABEL}={base_model}" if base_model else BASE_MODEL_LABEL
    pods = await client.list_in("Pod", namespace, selector)
    room = asyncio.Semaphore(AT_ONCE)

    async def ask(pod: Mapping[str, Any]) -> Exposition:
        metadata = pod["metadata"]
        async with room:
            try:
                text = await client.pod_text(metadata["namespace"], metadata["name"], SERVING_PORT, "metrics")
            except KubeError:
                text = ""
        return Exposition(metadata["namespace"], metadata["labels"][BASE_MODEL_LABEL], metadata["name"], text)

    found = await asyncio.gather(*map(ask, pods))
    return sorted(found, key=lambda each: (each.namespace, each.base, each.replica))
