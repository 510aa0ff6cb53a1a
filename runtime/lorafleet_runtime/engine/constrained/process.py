"""The child process that knows constraints, as the engine sees it: frames to it, answers from it, its end.

A thread reads what it answers, so that the engine can wait for that with a deadline. Knows no requests."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable

from lorafleet_runtime.constraints.messages import FromWorker, ToWorker, decode_from_worker
from lorafleet_runtime.constraints.progress import Progress, shared_memory
from lorafleet_runtime.frames import frame, read_frame

COMMAND = (sys.executable, "-m", "lorafleet_runtime.constraints.worker")


class ConstraintProcess:
    """Started at once. `heard` is called in the reading thread after every answer, and at the end."""

    def __init__(self, heard: Callable[[], None]) -> None:
        shared = shared_memory()
        command = (*COMMAND, f"{shared}")
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(shared,))
        self._progress = Progress(shared)
        os.close(shared)
        self._answers: queue.SimpleQueue[FromWorker | None] = queue.SimpleQueue()
        self._heard = heard
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def making(self) -> int:
        """Which mask it is at, or was when it ended: `progress`."""
        return self._progress.making

    def send(self, message: ToWorker) -> None:
        """To one that has ended, nothing: `next` says so."""
        assert self._child.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._child.stdin.write(frame(message))
            self._child.stdin.flush()

    def next(self, seconds: float) -> FromWorker | None:
        """The next answer. None when there is none within that time, or ever: see `ended`."""
        if self._ended:
            return None
        try:
            answer = self._answers.get(timeout=seconds) if seconds > 0 else self._answers.get_nowait()
        except queue.Empty:
            return None
        self._ended = answer is None
        return answer

    @property
    def ended(self) -> bool:
        """Whether all that it ever said has been read."""
        return self._ended

    def kill(self) -> None:
        """End it and wait for that; safe to call twice."""
        self._child.kill()
        self._child.wait()
        self._reader.join()
        for pipe in (self._child.stdin, self._child.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _read(self) -> None:
        assert self._child.stdout is not None
        while (body := read_frame(self._child.stdout)) is not None:
            self._answers.put(decode_from_worker(body))
            self._heard()
        self._answers.put(None)
        self._heard()
