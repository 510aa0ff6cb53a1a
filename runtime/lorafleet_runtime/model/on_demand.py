"""Memory that is taken only where it is touched, in pages as large as the system gives.

A step reads all weights and much of the pool: with pages of 4 KiB a processor spends a part of that on finding them,
most of all under a hypervisor (measured on SmolLM2, one thread: 5 % of a base step, 7 % with adapters)."""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
from collections.abc import Iterable

import torch
from torch import Tensor

LINE = 64
"""Bytes of a cache line, on which every tensor of a block begins."""
POPULATE_WRITE = 23
"""`MADV_POPULATE_WRITE` of Linux 5.14, which Python's mmap does not name."""


def zeros_on_demand(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros, straight from the operating system; given back to it when the last view is gone.

    Attention masks what a page does not hold yet, but 0 · NaN is NaN: a page must never hold what memory held before.
    """
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def take(memory: Tensor) -> None:
    """Take all of it now, where the system can. A virtual machine's own memory may be given to it as late as this:
    5 ms for every 2 MiB were measured, and a prompt of 2,048 tokens begins 30 of them, one a layer."""
    begin = -(-memory.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = memory.data_ptr() + memory.nbytes - begin
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if advise is not None and length > 0:  # what is refused is taken when it is touched
        advise(ctypes.c_void_p(begin), ctypes.c_size_t(length), POPULATE_WRITE)


class Block:
    """One piece of memory for many tensors of one type, which are moved into it one by one."""

    def __init__(self, tensors: Iterable[Tensor], dtype: torch.dtype) -> None:
        """As large as all of `tensors`."""
        self._step = LINE // dtype.itemsize
        self._memory = zeros_on_demand((max(1, sum(self._size(t) for t in tensors)),), dtype)
        self._end = 0

    def move(self, tensor: Tensor) -> Tensor:
        """A copy in the block, of one of the tensors it was made for."""
        begin, self._end = self._end, self._end + self._size(tensor)
        copy = self._memory[begin : begin + tensor.numel()].view(tensor.shape)
        return copy.copy_(tensor)

    def _size(self, tensor: Tensor) -> int:
        return -(-tensor.numel() // self._step) * self._step
