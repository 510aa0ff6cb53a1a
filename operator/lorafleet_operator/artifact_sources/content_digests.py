"""SHA-256 and size of remote content, read once: remembered by what the server says identifies the content."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from lorafleet_operator.errors import SourceError

MOST_BYTES = 16 << 30
BLOCK = 1 << 20

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Digest:
    sha256: str
    size: int


def digest_of(blocks: Iterable[bytes], where: str) -> Digest:
    """Of a content as it streams by; nothing of it is kept. Raises SourceError beyond 16 GiB."""
    state, size = hashlib.sha256(), 0
    for block in blocks:
        state.update(block)
        size += len(block)
        if size > MOST_BYTES:
            raise SourceError("TooLarge", f"{where} has more than {MOST_BYTES >> 30} GiB")
    return Digest(state.hexdigest(), size)


class ContentDigests:
    """Digests by (where, ETag or other identity of the content); beyond `capacity` the least recently used goes."""

    def __init__(self, capacity: int = 65536) -> None:
        self._capacity = capacity
        self._known: OrderedDict[Key, Digest] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Digest | None:
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
            return found

    def keep(self, key: Key, digest: Digest) -> None:
        with self._lock:
            self._known[key] = digest
            while len(self._known) > self._capacity:
                self._known.popitem(last=False)
