"""`kubectl lorafleet top`: every replica's own metrics, read through the API server, so that no port is opened."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from rich.live import Live
from rich.table import Table

from lorafleet_operator.cli.operator import configuration
from lorafleet_operator.cli.terminal import console
from lorafleet_operator.core.manifests import BASE_MODEL_LABEL
from lorafleet_operator.core.runtime_arguments import SERVING_PORT
from lorafleet_operator.errors import KubeError
from lorafleet_operator.kube.client import KubeClient

AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Row:
    """One replica; `values` by metric name, empty when it does not answer."""

    namespace: str
    base: str
    pod: str
    values: Mapping[str, float]


def run(options: argparse.Namespace) -> int:
    """Show until Ctrl-C, or once. Raises LorafleetError."""
    client = KubeClient(configuration(options.kubeconfig))
    try:
        return asyncio.run(_show(client, options))
    finally:
        client.close()


async def _show(client: KubeClient, options: argparse.Namespace) -> int:
    out = console()
    rows = await _rows(client, options.namespace)
    if options.once:
        out.print(table(rows))
        return 0
    with Live(table(rows), console=out, auto_refresh=False) as live:
        while True:
            begun = time.monotonic()
            live.update(table(await _rows(client, options.namespace)), refresh=True)
            await asyncio.sleep(max(0.1, options.every - (time.monotonic() - begun)))


async def _rows(client: KubeClient, namespace: str | None) -> list[Row]:
    pods = await client.list_in("Pod", namespace or "", BASE_MODEL_LABEL)
    room = asyncio.Semaphore(AT_ONCE)

    async def row(pod: Mapping[str, Any]) -> Row:
        metadata = pod["metadata"]
        async with room:
            try:
                text = await client.pod_text(metadata["namespace"], metadata["name"], SERVING_PORT, "metrics")
            except KubeError:
                text = ""
        return Row(metadata["namespace"], metadata["labels"][BASE_MODEL_LABEL], metadata["name"], parsed(text))

    return sorted(await asyncio.gather(*map(row, pods)), key=lambda r: (r.namespace, r.base, r.pod))


def parsed(text: str) -> dict[str, float]:
    """The gauges of an exposition; of several series of one name the sum, `lorafleet_adapters` by its state."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = f"{sample.name}.{sample.labels['state']}" if "state" in sample.labels else sample.name
            found[name] = found.get(name, 0.0) + sample.value
    return found


def table(rows: list[Row]) -> Table:
    """What people see."""
    shown = Table(box=None, pad_edge=False)
    for name in ("NAMESPACE", "BASE MODEL", "REPLICA"):
        shown.add_column(name)
    for name in ("RUNNING", "WAITING", "TOKENS/S", "STEP MS", "KV", "ADAPTERS", "IN PAGES"):
        shown.add_column(name, justify="right")
    for row in rows:
        v = row.values
        if not v:
            shown.add_row(row.namespace, row.base, row.pod, *("-",) * 7)
            continue
        shown.add_row(
            row.namespace, row.base, row.pod, f"{v.get('vllm:num_requests_running', 0):.0f}",
            f"{v.get('vllm:num_requests_waiting', 0):.0f}", f"{v.get('lorafleet_output_tokens_per_second', 0):.1f}",
            f"{1000 * v.get('lorafleet_step_seconds', 0):.0f}", f"{100 * v.get('vllm:kv_cache_usage_perc', 0):.0f} %",
            f"{v.get('lorafleet_adapters.Ready', 0):.0f}", f"{v.get('lorafleet_adapters_resident', 0):.0f}",
        )  # fmt: skip
    return shown
