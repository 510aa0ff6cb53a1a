"""SHA-256 of files, computed once per content: a file that did not change is not read again."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from pathlib import Path

CHUNK = 1 << 20

Key = tuple[str, int, int]


class DigestCache:
    """Digests by (path, mtime_ns, size); beyond `capacity` the least recently used is forgotten. Thread safe."""

    def __init__(self, capacity: int = 8192) -> None:
        self._capacity = capacity
        self._digests: OrderedDict[Key, str] = OrderedDict()
        self._lock = threading.Lock()
        self.reads = 0  # files hashed, not taken from the cache

    def digest(self, path: Path) -> tuple[str, int]:
        """(SHA-256 in hex, size in bytes) of `path`. Raises OSError when it cannot be read.

        The key is taken before reading: a file written meanwhile is hashed again on the next call.
        """
        stat = path.stat()
        key = (str(path), stat.st_mtime_ns, stat.st_size)
        with self._lock:
            known = self._digests.get(key)
            if known is not None:
                self._digests.move_to_end(key)
                return known, stat.st_size
        value = _sha256(path)
        with self._lock:
            self.reads += 1
            self._digests[key] = value
            while len(self._digests) > self._capacity:
                self._digests.popitem(last=False)
        return value, stat.st_size

    @property
    def size(self) -> int:
        """How many digests are known."""
        return len(self._digests)


def _sha256(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            state.update(chunk)
    return state.hexdigest()
