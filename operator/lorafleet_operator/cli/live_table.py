"""What both `top` commands share: replicas' metrics as they come, and a table of them that is drawn again and again."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from rich.console import RenderableType
from rich.live import Live

from lorafleet_operator.cli.terminal import console

FIRST_SECONDS = 1.0
"""Between the two looks of `--once`: a rate needs two."""


Sample = tuple[str, Mapping[str, str], float]
"""Name, labels, value."""


@dataclass(frozen=True, slots=True)
class Exposition:
    """What the /metrics of one replica answered; empty when it did not."""

    namespace: str
    base: str
    replica: str
    text: str

    def samples(self) -> list[Sample]:
        """All of them; nothing when another program answered, with something else."""
        try:
            families = list(text_string_to_metric_families(self.text))
        except ValueError:
            return []
        return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


Read = Callable[[], Awaitable[list[Exposition]]]
View = Callable[[list[Exposition], float], RenderableType]
"""What people see of the expositions of one moment, in monotonic seconds. May remember the last ones, for rates."""


async def show(read: Read, view: View, options: argparse.Namespace, *, rates: bool = False) -> int:
    """Show until Ctrl-C, or once; with `rates`, a view of one moment needs an earlier one."""
    out = console()
    shown = view(await read(), time.monotonic())
    if options.once:
        if rates:
            await asyncio.sleep(FIRST_SECONDS)
            shown = view(await read(), time.monotonic())
        out.print(shown)
        return 0
    with Live(shown, console=out, auto_refresh=False) as live:
        pause = min(FIRST_SECONDS, options.every) if rates else options.every
        while True:
            await asyncio.sleep(max(0.1, pause))
            begun = time.monotonic()
            live.update(view(await read(), begun), refresh=True)
            pause = options.every - (time.monotonic() - begun)
