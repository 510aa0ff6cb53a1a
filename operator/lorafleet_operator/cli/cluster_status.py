"""`kubectl lorafleet status`: the tables of `kubectl get`, and below them what is wrong, in the operator's words."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from lorafleet_operator.cli.get import print_tables, select
from lorafleet_operator.cli.operator import configuration
from lorafleet_operator.core.status import KINDS
from lorafleet_operator.kube.client import KubeClient

# The first of these that does not hold is the reason for the rest.
ORDER = ("Accepted", "ArtifactVerified", "WorkloadReady", "Placed", "Ready")


def run(options: argparse.Namespace) -> int:
    """Print everything; 1 when something is not as it should be. Raises LorafleetError."""
    found = select(asyncio.run(_objects(options.kubeconfig)), KINDS, options.namespace, None)
    if not found:
        print("no objects of lorafleet.dev here")
        return 0
    print_tables(found, KINDS, wide=False)
    problems = list(troubles(found))
    for problem in problems:
        print(f"\n{problem}" if problem is problems[0] else problem)
    return 1 if problems else 0


def troubles(objects: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """One line for each object that is refused or not Ready."""
    for found in objects:
        metadata = found["metadata"]
        where = f"{metadata['namespace']}/{metadata['name']}" if metadata.get("namespace") else metadata["name"]
        conditions = {c["type"]: c for c in (found.get("status") or {}).get("conditions") or ()}
        if not conditions:
            yield f"{found['kind']} {where}: no operator has looked at it yet"
            continue
        wrong = next((conditions[c] for c in ORDER if c in conditions and conditions[c]["status"] == "False"), None)
        if wrong is not None:
            yield f"{found['kind']} {where}: {wrong['reason']}: {wrong.get('message', '')}"


async def _objects(kubeconfig: str | None) -> list[dict[str, Any]]:
    client = KubeClient(configuration(kubeconfig))
    try:
        return [{**item, "kind": kind} for kind in KINDS for item in await client.list(kind)]
    finally:
        client.close()
