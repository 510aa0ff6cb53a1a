"""The other ranks of a replica, as seen by the first: child processes, a pipe to each and one back.

Knows no torch: they are started first of all, so that all ranks import it at the same time. A rank ends when its
standard input does, so none outlives the first; and the first learns of a rank's end at once, from the pipe back,
whatever a collective is waiting for."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.ranks.messages import (
    AdapterFetched,
    AdapterRead,
    Failed,
    FetchAdapter,
    FromRank,
    Load,
    ToRank,
    decode_from_rank,
)
from lorafleet_runtime.errors import RankDied
from lorafleet_runtime.frames import frame, read_frame

log = structlog.get_logger("engine")

STOP_SECONDS = 5.0
BLAME_SECONDS = 2.0
"""How long a failed collective waits to learn which rank has ended."""


class Ranks:
    """Ranks 1 .. N-1. `died(reason)` is called once, from a thread, when one ends unasked; from then on `send` raises.

    `on_read(rank, answer)` is called from the threads that listen.
    """

    def __init__(self, size: int, died: Callable[[str], None]) -> None:
        self._died = died
        self._folder = Path(tempfile.mkdtemp(prefix="lorafleet-ranks-"))
        self.rendezvous = self._folder / "group"
        self.size = size
        self.on_read: Callable[[int, AdapterRead], None] = lambda rank, answer: None
        self._reason = ""
        self._closing = False
        self._loaded: set[int] = set()
        self._fetched: dict[int, dict[int, str]] = {}  # by handle: errors, or "", by rank
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []
        for rank in range(1, self.size):
            command = [sys.executable, "-m", "lorafleet_runtime.engine.ranks.process"]
            command += ["--rank", str(rank), "--rendezvous", str(self.rendezvous)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._processes.append(process)
            threading.Thread(target=self._listen, args=(rank, process), daemon=True, name=f"rank-{rank}").start()

    @property
    def pids(self) -> list[int]:
        """Process ids, by rank from 1."""
        return [process.pid for process in self._processes]

    def load(self, config: EngineConfig) -> None:
        """Have each read its part of the model. All that could be "decide for me" is decided. Raises RankDied."""
        self.send(Load(config.to_json()))

    def wait_until_loaded(self) -> None:
        """Return when every rank has its part of the model. Raises RankDied."""
        with self._changed:
            self._changed.wait_for(lambda: self._reason or len(self._loaded) == self.size - 1)
        self._check()

    def send(self, message: ToRank) -> None:
        """Tell every rank, from any thread. Raises RankDied when one is gone."""
        self._check()
        data = frame(message)
        try:
            with self._sending:
                for process in self._processes:
                    assert process.stdin is not None
                    process.stdin.write(data)
                    process.stdin.flush()
        except OSError as error:
            raise self.blame(error) from error

    def fetch(self, handle: int) -> Callable[[], str]:
        """Have every rank bring an adapter back into its memory; the result waits for all of them, and returns the
        first error or "". Raises RankDied."""
        self._fetched[handle] = {}
        self.send(FetchAdapter(handle))

        def wait() -> str:
            with self._changed:
                self._changed.wait_for(lambda: self._reason or len(self._fetched[handle]) == self.size - 1)
                answers = self._fetched.pop(handle)
            self._check()
            return next((f"on rank {rank}: {error}" for rank, error in sorted(answers.items()) if error), "")

        return wait

    def blame(self, error: Exception) -> Exception:
        """What to raise for an error that another rank may have caused: RankDied if one has ended, or the error."""
        with self._changed:
            self._changed.wait_for(lambda: self._reason, BLAME_SECONDS)
        return RankDied(self._reason) if self._reason else error

    def joined(self) -> None:
        """Every rank has met the others: the place where they met is not needed any more."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """End all ranks, by their pipes, at last by force."""
        self._closing = True
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.joined()

    def _check(self) -> None:
        if self._reason:
            raise RankDied(self._reason)

    def _listen(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        words = ""
        with process.stdout as pipe:
            while (raw := read_frame(pipe)) is not None:
                answer = decode_from_rank(raw)
                if isinstance(answer, Failed):
                    words = f": {answer.message}"
                    log.error("a rank failed", rank=rank, message=answer.message, details=answer.details)
                else:
                    self._take(rank, answer)
        code = process.wait()
        if self._closing:
            return
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        with self._changed:
            first, self._reason = not self._reason, self._reason or f"rank {rank} of {self.size} ended {how}{words}"
            self._changed.notify_all()
        if first:
            self._died(self._reason)

    def _take(self, rank: int, answer: FromRank) -> None:
        if isinstance(answer, AdapterRead):
            self.on_read(rank, answer)
        else:
            with self._changed:
                if isinstance(answer, AdapterFetched):
                    self._fetched.setdefault(answer.handle, {})[rank] = answer.error
                else:
                    self._loaded.add(rank)
                self._changed.notify_all()
