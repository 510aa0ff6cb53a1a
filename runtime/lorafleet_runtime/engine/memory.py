"""What the process keeps of the memory that it has freed, and what the machine has left."""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's names for them
LARGEST_KEPT = 32 * 2**20
"""The most that glibc allows below its mmap threshold."""


def keep_freed() -> None:
    """Let the C library keep what a step frees for the next step, until `give_back`: else every large intermediate is
    new memory, taken page by page (measured: an eighth of a prompt's step, a twentieth of a decode step)."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(MMAP_THRESHOLD, LARGEST_KEPT)
        set_option(TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """Return freed heap to the operating system, where the C library can: loading leaves hundreds of megabytes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def available_bytes() -> int:
    """Memory that can be taken without pushing others out; half of the machine's where the system does not say."""
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
