"""`lorafleet plan`: what `up` would do and why, and what is wrong with the files. Starts nothing, writes nothing."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace

from lorafleet_operator.config import Settings, settings
from lorafleet_operator.core.actions import Plan
from lorafleet_operator.core.objects import Desired, Observed, Unresolved
from lorafleet_operator.core.planner import plan
from lorafleet_operator.errors import UsageError
from lorafleet_operator.folder import Folder
from lorafleet_operator.local import observed_json
from lorafleet_operator.local.local_sources import LocalSources
from lorafleet_operator.local.state_folder import StateFolder, read_json
from lorafleet_operator.resolver import Resolver


def run(options: argparse.Namespace) -> int:
    """Print problems and actions; 1 when there is a problem. Raises UsageError for a path that does not exist."""
    chosen = settings(options.filename, state_dir=options.state_dir)
    folder = opened(chosen)
    running, observed = asyncio.run(_observed(chosen, folder.desired))
    decided = plan(folder.desired, observed, time.monotonic())
    problems = list(problems_of(folder.desired, observed))
    for line in lines(decided, problems, running=running):
        print(line)
    return 1 if problems else 0


def opened(chosen: Settings) -> Folder:
    """The folder of the settings, looked at once. Raises UsageError for a path that does not exist."""
    for path in chosen.paths:
        if not path.exists():
            raise UsageError(f"-f {path}: there is no such file or folder")
    folder = Folder(chosen.paths)
    folder.scan()
    return folder


def problems_of(desired: Desired, observed: Observed) -> Iterator[str]:
    """Everything that keeps an object from being served, as sentences."""
    yield from (str(problem) for problem in desired.problems)
    for kind, found in (("BaseModel", observed.base_artifacts), ("LoRAAdapter", observed.artifacts)):
        for ref, artifact in sorted(found.items()):
            if isinstance(artifact, Unresolved):
                yield f"{kind} {ref}: {artifact.message}"


def lines(decided: Plan, problems: list[str], *, running: bool) -> Iterator[str]:
    """The report, one finding a line."""
    yield from (f"problem: {problem}" for problem in problems)
    against = "the running fleet" if running else "no fleet: none runs with this state folder"
    yield f"planned against {against}"
    yield from (str(action) for action in decided.actions)
    yield from (f"{replica} stays for now: {why}" for replica, why in sorted(decided.waits.items()))
    if not decided.actions:
        yield "nothing to do" if running or not problems else "nothing can be done"


async def _observed(chosen: Settings, desired: Desired) -> tuple[bool, Observed]:
    state = StateFolder(chosen.state_dir)
    running = state.owner() is not None
    status = read_json(state.status) if running else None
    seen = observed_json.from_json(status.get("observed")) if isinstance(status, dict) else Observed()
    sources = LocalSources(lambda: desired)
    resolver = Resolver(lambda: None, adapter=sources.adapter, base=sources.base)
    await resolver.resolve(desired)
    resolver.close()
    sources.close()
    return running, replace(seen, artifacts=resolver.adapters, base_artifacts=resolver.base_models)
