"""Which mask the process that knows constraints is making, in memory that the engine sees too: masks are told many at a
time, and one that hangs or dies tells nothing any more."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile

_BYTES = 8


class Progress:
    """Masks are counted from 1, in the order in which they were asked for; 0 while none is being made."""

    def __init__(self, descriptor: int) -> None:
        """Of `shared_memory`, which may be closed afterwards."""
        self._memory = mmap.mmap(descriptor, _BYTES)

    @property
    def making(self) -> int:
        return int.from_bytes(self._memory[:], sys.byteorder)

    @making.setter
    def making(self, number: int) -> None:
        self._memory[:] = number.to_bytes(_BYTES, sys.byteorder)


def shared_memory() -> int:
    """A descriptor for both processes; whoever asked closes it."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("lorafleet-masks")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, _BYTES)
    return descriptor
