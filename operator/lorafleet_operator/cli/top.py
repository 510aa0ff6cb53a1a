"""`lorafleet top`: the metrics of the replicas on this machine, found by what the running fleet says of them."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

import aiohttp

from lorafleet_operator.cli.live_table import Exposition, View, show
from lorafleet_operator.cli.replica_table import replica_table
from lorafleet_operator.cli.tenant_table import TenantTable
from lorafleet_operator.core.objects import Replica
from lorafleet_operator.errors import FleetNotRunning
from lorafleet_operator.local import observed_json, state_folder
from lorafleet_operator.local.state_folder import StateFolder, read_json

SECONDS = 2.0


def run(options: argparse.Namespace) -> int:
    """Show until Ctrl-C, or once. Raises FleetNotRunning."""
    path = Path(options.state_dir) if options.state_dir else state_folder.default_path(os.environ)
    return asyncio.run(_show(StateFolder(path.expanduser()), options))


def view_of(what: str) -> View:
    """What is shown of replicas' metrics: the `replicas` themselves, or their `tenants`."""
    return TenantTable() if what == "tenants" else replica_table


async def _show(state: StateFolder, options: argparse.Namespace) -> int:
    timeout = aiohttp.ClientTimeout(total=SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as http:

        async def read() -> list[Exposition]:
            chosen = [r for r in replicas(state) if _wanted(r, options.namespace, options.base_model)]
            return list(await asyncio.gather(*(_ask(http, replica) for replica in chosen)))

        return await show(read, view_of(options.what), options, rates=options.what == "tenants")


def replicas(state: StateFolder) -> list[Replica]:
    """The replicas of the fleet that runs with this folder. They may change their ports. Raises FleetNotRunning."""
    document = read_json(state.status)
    if state.owner() is None or not isinstance(document, dict):
        raise FleetNotRunning(
            f"no fleet runs with the state folder {state.root}: start one with lorafleet up -f DIR"
        )
    found = observed_json.from_json(document.get("observed")).replicas.values()
    return sorted(found, key=lambda replica: (replica.base, replica.index, replica.name))


def _wanted(replica: Replica, namespace: str | None, base_model: str | None) -> bool:
    return namespace in (None, replica.base.namespace) and base_model in (None, replica.base.name)


async def _ask(http: aiohttp.ClientSession, replica: Replica) -> Exposition:
    text = ""
    try:
        async with http.get(f"{replica.url}/metrics") as response:
            if response.status == 200:
                text = await response.text()
    except (aiohttp.ClientError, TimeoutError, OSError):
        pass  # shown as a replica that does not answer
    return Exposition(*replica.base, replica.name, text)
