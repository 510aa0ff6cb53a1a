"""One child process whose life is tied to ours: its standard input is a pipe whose other end only we hold.

Knows nothing of what the child does. When the parent dies, even by `kill -9`, the pipe closes and the child ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LOGS_KEPT = 3
LOG_BYTES = 16 * 1024 * 1024


@dataclass(slots=True)
class Child:
    """A running (or ended) child. `returncode` is None while it runs."""

    process: Process
    log: Path
    _lifeline: int = field(repr=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    async def wait(self) -> int:
        """Its exit status, once it has ended: negative is the signal that ended it."""
        code = await self.process.wait()
        self._release()
        return code

    async def stop(self, patience: float) -> int:
        """Ask it to end, wait up to `patience` seconds, then kill it. Idempotent; returns the exit status."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(patience):
                return await self.wait()
        except TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        """End it now."""
        self.signal(signal.SIGKILL)
        return await self.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended between the look and the signal
                self.process.send_signal(number)

    def _release(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


async def spawn(argv: Sequence[str], *, env: Mapping[str, str], log: Path) -> Child:
    """Start `argv` with its output in `log` (older logs are kept as .1, .2). Raises OSError when it cannot.

    The child gets its own session: Ctrl-C at the terminal reaches only us, and we end the fleet in order.
    """
    rotate(log)
    reader, writer = os.pipe()  # neither end is inheritable: no child holds another's lifeline
    try:
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=reader, stdout=output, stderr=output, env=dict(env), start_new_session=True
            )
    except BaseException:
        os.close(writer)
        raise
    finally:
        os.close(reader)
    return Child(process, log, writer)


def rotate(log: Path) -> None:
    """Move `log` to `log.1`, `log.1` to `log.2`, and forget what is older."""
    log.parent.mkdir(parents=True, exist_ok=True)
    for age in range(LOGS_KEPT - 1, 0, -1):
        older = log.with_name(f"{log.name}.{age}")
        newer = log if age == 1 else log.with_name(f"{log.name}.{age - 1}")
        if newer.exists():
            newer.replace(older)


def bound(log: Path, limit: int = LOG_BYTES) -> bool:
    """Cut a log that outgrew `limit` to a quarter of it. The child appends, so it goes on at the new end."""
    try:
        size = log.stat().st_size
    except FileNotFoundError:
        return False
    if size <= limit:
        return False
    with log.open("r+b") as file:
        file.seek(size - limit // 4)
        tail = file.read()
        file.seek(0)
        file.truncate()
        file.write(tail[tail.find(b"\n") + 1 :])
    return True


def last_lines(log: Path, count: int = 3) -> str:
    """The last non-empty lines of a log, for an error message; "" when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join([line.strip() for line in text.splitlines() if line.strip()][-count:])
