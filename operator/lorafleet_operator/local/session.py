"""A fleet on this machine for as long as a block lasts: the lock, the signals, the world's loop, the end in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from lorafleet_operator.config import Settings
from lorafleet_operator.errors import InputError
from lorafleet_operator.folder import Folder
from lorafleet_operator.local import progress
from lorafleet_operator.local.ports import require_free
from lorafleet_operator.local.state_folder import StateFolder
from lorafleet_operator.local.world import LocalWorld

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class Session:
    """A world that runs. `stop` ends it; `signals` counts who asked for that from outside."""

    world: LocalWorld
    stop: asyncio.Event
    running: asyncio.Task[None]
    signals: int = 0

    @property
    def over(self) -> bool:
        return self.stop.is_set() or self.running.done()

    def items(self) -> list[progress.Item]:
        """How far every object is, as the last pass saw it."""
        return progress.items(*self.world.last)

    def settled(self) -> bool:
        """Is the gateway up, and nothing left to wait for?"""
        return self.world.gateway.ready and progress.settled(self.items())

    async def tick(self, seconds: float = 0.25) -> None:
        """Wait a moment, or until it is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stop.wait()


@contextlib.asynccontextmanager
async def fleet(settings: Settings, folder: Folder) -> AsyncIterator[Session]:
    """Run the fleet while the block runs, then end it in order. A first signal sets `stop`, a second kills.

    Raises StateFolderBusy, PortTaken, or InputError when there is nothing to serve.
    """
    if not folder.desired.base_models:
        problems = "".join(f"\n  {problem}" for problem in folder.desired.problems)
        places = ", ".join(str(path) for path in settings.paths)
        raise InputError(f"there is no BaseModel to serve in {places}{':' + problems if problems else ''}")
    state = StateFolder(settings.state_dir)
    with state.hold():
        require_free(settings.host, settings.port)
        world = LocalWorld(settings, folder, state)
        stop = asyncio.Event()
        session = Session(world, stop, asyncio.create_task(world.run(stop)))
        with _signals(session):
            try:
                yield session
            finally:
                stop.set()
                await session.running


@contextlib.contextmanager
def _signals(session: Session) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def asked(number: signal.Signals) -> None:
        session.signals += 1
        if session.signals == 1:
            print(f"\n{number.name}: ending the fleet in order; once more ends it at once", file=sys.stderr)
            session.stop.set()
        else:
            session.world.kill()

    for number in SIGNALS:
        loop.add_signal_handler(number, asked, number)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
