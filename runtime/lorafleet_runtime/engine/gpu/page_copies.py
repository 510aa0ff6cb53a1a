"""Adapters' weights into their pages, beside the step that runs: on a stream of its own, through a buffer that is as
large as it is, whatever the adapter's size."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from lorafleet_runtime.engine.transfers import on_device

STAGED_BYTES = 32 * 2**20
"""Of the buffer between the bus and the pages: large enough that a copy's start costs nothing beside it."""


class PageCopies:
    """Of one `pool [layers, P, page elements]`. Copies are made in the order in which they are asked for."""

    def __init__(self, pool: Tensor, staged_bytes: int = STAGED_BYTES) -> None:
        self._pages = pool.flatten(0, 1)
        self._layers, self._pages_a_layer = pool.shape[:2]
        rows = max(1, staged_bytes // pool[0, 0].nbytes)
        self._staged = pool.new_empty(rows, pool.shape[2])
        self._stream = torch.cuda.Stream(pool.device) if pool.is_cuda else None  # type: ignore[no-untyped-call]
        self._under_way: deque[tuple[torch.cuda.Event, Tensor]] = deque()  # what is copied must not be freed

    def write(self, pages: list[int], blob: Tensor, *, read_now: bool) -> None:
        """`blob [layers, n, page elements]` into the pages of those ids. `read_now`: what was launched before may still
        read one of them, so that it is waited for."""
        if self._stream is None:
            self._write(pages, blob)
            return
        if read_now:
            self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._write(pages, blob)
            written = torch.cuda.Event()  # type: ignore[no-untyped-call]
            written.record()
        self._under_way.append((written, blob))
        while self._under_way and self._under_way[0][0].query():  # type: ignore[no-untyped-call]
            self._under_way.popleft()

    def join(self) -> None:
        """What is launched from now on reads the pages as they were written."""
        if self._under_way:
            torch.cuda.current_stream().wait_event(self._under_way[-1][0])

    def _write(self, pages: list[int], blob: Tensor) -> None:
        device = self._staged.device
        first = torch.arange(self._layers, device=device) * self._pages_a_layer
        rows = (first[:, None] + on_device(pages, torch.int64, device)).flatten()
        source = blob.flatten(0, 1)
        for begin in range(0, len(source), len(self._staged)):
            part = source[begin : begin + len(self._staged)]
            staged = self._staged[: len(part)]
            staged.copy_(part, non_blocking=True)
            self._pages.index_copy_(0, rows[begin : begin + len(part)], staged)
