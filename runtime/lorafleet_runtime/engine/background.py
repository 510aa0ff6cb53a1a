"""Threads that read and write while steps run, and give way to them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

LOWER_BY = 10
"""Nice levels: about a tenth of a core that a step wants too. Measured on two cores, with 40 adapters being read: the
longest step was 12 times the median at equal priority, and 4 times so (`bench.adapters_scale`)."""


def background_thread(name: str) -> ThreadPoolExecutor:
    """One thread that runs what it is given, in order."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=name, initializer=_step_aside)


def _step_aside() -> None:
    """Linux alone has priorities by thread."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox that forbids it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWER_BY)
