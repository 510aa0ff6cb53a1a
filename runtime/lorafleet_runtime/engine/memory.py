"""What the process keeps of the memory that it has freed, and what the machine has left."""

from __future__ import annotations

import ctypes
import os


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
