"""`lorafleet up`: brings the fleet up, says how far it is, what serves, and how to call it; then serves until told."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lorafleet_operator import logs
from lorafleet_operator.cli.example import Access, accesses, curl
from lorafleet_operator.cli.plan import opened
from lorafleet_operator.cli.terminal import CurrentStderr, console, plain_table
from lorafleet_operator.cli.waiting import Bars, Lines
from lorafleet_operator.config import Settings, settings
from lorafleet_operator.core.objects import Desired
from lorafleet_operator.folder import Folder
from lorafleet_operator.local.progress import Item
from lorafleet_operator.local.session import Session, fleet

COLOURS = {"ready": "green", "failed": "red"}


def run(options: argparse.Namespace) -> int:
    """Serve until a signal; 0 when the fleet was ended in order. Raises LorafleetError when it cannot start."""
    chosen = from_options(options)
    return asyncio.run(_serve(chosen, opened(chosen)))


def from_options(options: argparse.Namespace) -> Settings:
    """The settings of `up` and `demo`, with logging set up as they say."""
    chosen = settings(
        options.filename, host=options.host, port=options.port, state_dir=options.state_dir,
        log_format=options.log_format,
    )  # fmt: skip
    # At a terminal the bars tell what happens; elsewhere the log does.
    level = logging.WARNING if sys.stdout.isatty() and chosen.log_format == "console" else logging.INFO
    logs.configure(chosen.log_format, level=level, stream=CurrentStderr())
    return chosen


async def _serve(chosen: Settings, folder: Folder) -> int:
    out = console()
    for problem in folder.news():
        print(f"problem: {problem}", file=sys.stderr)
    async with fleet(chosen, folder) as session:
        await until_settled(session, out)
        if not session.over:
            announce(session, out, chosen)
        await _tell_changes(session, out)
    return 0


async def until_settled(session: Session, out: Console) -> None:
    """Show how far everything is until nothing is left to wait for, or the session is over."""
    with Bars(out) if out.is_terminal else Lines(out) as view:
        while not session.over:
            view.show(session.items())
            if session.settled():
                return
            await session.tick()


def announce(session: Session, out: Console, chosen: Settings) -> None:
    """Print what serves, for whom, and a first call to paste."""
    desired, items = session.world.last[0], session.items()
    found = accesses(desired, session.world.folder.documents(), items)
    _table(out, ("Model", "Kind", "Object", "State", ""), _model_rows(items))
    if desired.tenants:
        out.print()
        _table(out, ("Tenant", "Weight", "May call"), _tenant_rows(desired, found))
    out.print(f"\nserving OpenAI's API at [bold]{chosen.gateway_url}/v1[/]; state and logs in {chosen.state_dir}")
    callers = [access for access in found if access.models]
    if callers:
        first = next((access for access in callers if access.key is not None), callers[0])
        if first.key is None:
            where = first.secret
            out.print(f"try it, with KEY set to {where.key!r} of Secret {where.namespace}/{where.name}:")
        else:
            out.print(f"try it, as tenant {first.tenant}:")
        print(f"\n{curl(first, chosen.gateway_url)}\n", flush=True)
    elif not desired.tenants:
        out.print("no Tenant is declared, so nobody may call it yet: add one, with its Secret, to the YAML")


async def _tell_changes(session: Session, out: Console) -> None:
    before = {(item.kind, item.name): item for item in session.items()}
    while not session.over:
        await session.tick()
        after = {(item.kind, item.name): item for item in session.items()}
        for key, item in after.items():
            if item.settled and (key not in before or before[key].stage != item.stage):
                said = f": {item.message}" if item.message else ""
                out.print(f"{item.kind} {item.name} is {item.stage}{said}", markup=False)
        before = {key: item if item.settled else before.get(key, item) for key, item in after.items()}


def _model_rows(items: list[Item]) -> list[list[str]]:
    return [[item.served_name, item.kind, item.name, item.stage, item.message] for item in items]


def _tenant_rows(desired: Desired, found: list[Access]) -> list[list[str]]:
    models = {access.tenant: ", ".join(access.models) for access in found}
    tenants = sorted(desired.tenants.items())
    return [[name, str(tenant.weight), models.get(name) or "nothing yet"] for name, tenant in tenants]


def _table(out: Console, header: Sequence[str], rows: list[list[str]]) -> None:
    if not out.is_terminal:
        for line in plain_table(header, rows):
            out.print(line, markup=False)
        return
    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    out.print(table)
