"""Packed adapters on disk: what host memory has no room for. Each is one write and one read, in page order.

They lie in one file without a name, which belongs to this engine alone and is gone with it, however it ends; the
adapters' own files stay where they are."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor

from lorafleet_runtime.model.errors import InvalidAdapter

log = structlog.get_logger("engine")


@dataclass(frozen=True, slots=True)
class _Entry:
    digest: bytes
    shape: torch.Size
    dtype: torch.dtype
    offset: int  # -1: only the digest is known, since the disk was full
    size: int


class DiskTier:
    """By adapter handle. Used by one thread, which is not the engine's. `folder` "": where temporary files go."""

    def __init__(self, folder: str = "") -> None:
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder or None, buffering=0)  # noqa: SIM115 - open as long as this lives
        self._entries: dict[int, _Entry] = {}
        self._free: dict[int, list[int]] = {}  # offsets of given-up extents, by their size: adapters have few sizes
        self._end = 0

    def write(self, handle: int, blob: Tensor) -> None:
        """Keep a copy unless there is one. A full disk is no failure: the adapter's own files are read again then."""
        if handle in self._entries:
            return
        data = _bytes(blob)
        offset = self._extent(data.nbytes)
        try:
            written = os.pwrite(self._file.fileno(), data, offset)
            if written < data.nbytes:
                raise OSError(f"{written} of {data.nbytes} bytes were written")
        except OSError as error:
            log.warning("a packed adapter was not written; its own files will be read again", error=str(error))
            self._free.setdefault(data.nbytes, []).append(offset)
            offset = -1
        self._entries[handle] = _Entry(hashlib.sha256(data).digest(), blob.shape, blob.dtype, offset, data.nbytes)

    def read(self, handle: int) -> Tensor | None:
        """The copy; None when there is none, or when it is not what was written."""
        entry = self._entries.get(handle)
        if entry is None or entry.offset < 0:
            return None
        blob = torch.empty(entry.shape, dtype=entry.dtype)
        data = _bytes(blob)
        try:
            complete = os.preadv(self._file.fileno(), [data], entry.offset) == data.nbytes
        except OSError:
            complete = False
        if complete and hashlib.sha256(data).digest() == entry.digest:
            return blob
        log.warning("a packed adapter is damaged on disk; its own files are read again")
        return None

    def restore(self, handle: int, pack_again: Callable[[], Tensor]) -> Tensor:
        """The copy, or what `pack_again` makes of the adapter's own files. Raises InvalidAdapter when that is not what
        was packed the first time."""
        blob = self.read(handle)
        if blob is None:
            blob = pack_again()
            entry = self._entries.get(handle)
            if entry is not None and hashlib.sha256(_bytes(blob)).digest() != entry.digest:
                raise InvalidAdapter("its files are not what they were when it was loaded; load it again")
            self.forget(handle)
            self.write(handle, blob)
        return blob

    def forget(self, handle: int) -> None:
        """Give its space to others."""
        entry = self._entries.pop(handle, None)
        if entry is not None and entry.offset >= 0:
            self._free.setdefault(entry.size, []).append(entry.offset)

    def close(self) -> None:
        self._file.close()

    def _extent(self, size: int) -> int:
        if self._free.get(size):
            return self._free[size].pop()
        self._end += size
        return self._end - size


def _bytes(blob: Tensor) -> memoryview:
    assert blob.is_contiguous()
    flat: Any = blob.view(torch.uint8).view(-1).numpy()
    return memoryview(flat)
