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
    """The digest of what lies at a place, and what identified that content (an ETag, a version); beyond `capacity`
    places the least recently used goes. An adapter has two: of more than half as many, some are read at each look."""

    def __init__(self, capacity: int = 65536) -> None:
        self._capacity = capacity
        self._known: OrderedDict[str, tuple[str, Digest]] = OrderedDict()
        self._lock = threading.Lock()

    def knows(self, place: str) -> bool:
        """Has it been read before, whatever lies there now?"""
        with self._lock:
            return place in self._known

    def get(self, place: str, identity: str) -> Digest | None:
        """The digest, if the same content lies there as when it was read."""
        with self._lock:
            known, digest = self._known.get(place, ("", None))
            if digest is None or known != identity:
                return None
            self._known.move_to_end(place)
            return digest

    def keep(self, place: str, identity: str, digest: Digest) -> None:
        with self._lock:
            self._known[place] = identity, digest
            self._known.move_to_end(place)
            while len(self._known) > self._capacity:
                self._known.popitem(last=False)
