"""Host memory that a card copies from by itself: adapters' packed weights, locked where they lie."""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable
from typing import Protocol

import numpy as np
import structlog
import torch
from torch import Tensor

log = structlog.get_logger("engine")


class Locks(Protocol):
    """Of CUDA's runtime. Both return 0 for success."""

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int: ...
    def cudaHostUnregister(self, pointer: int) -> int: ...


class PageLocking:
    """Copies tensors to memory that is locked until they are freed. torch's own is rounded up to powers of two, which
    would be a third of a host tier; this is rounded up to pages of the system. From any thread."""

    def __init__(self, locks: Callable[[], Locks] = torch.cuda.cudart) -> None:
        self._locks = locks
        self._warned = False

    def __call__(self, blob: Tensor) -> Tensor:
        """An equal tensor in locked memory; where the system allows none, steps wait for the copies of this one."""
        if blob.numel() == 0 or blob.is_pinned():
            return blob
        bytes_of = np.frombuffer(mmap.mmap(-1, blob.nbytes), np.uint8)
        locks, address = self._locks(), bytes_of.ctypes.data
        failure = int(locks.cudaHostRegister(address, blob.nbytes, 0))
        if failure:
            self._warn(failure)
            return blob
        # The array ends before the memory below it does, and after every tensor over it.
        weakref.finalize(bytes_of, locks.cudaHostUnregister, address).atexit = False
        return torch.from_numpy(bytes_of).view(blob.dtype).view(blob.shape).copy_(blob)

    def _warn(self, failure: int) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "adapters are copied to the card from memory that is not page-locked, and steps wait for it: "
                "raise the limit of locked memory (ulimit -l)", cuda_error=failure,
            )  # fmt: skip
