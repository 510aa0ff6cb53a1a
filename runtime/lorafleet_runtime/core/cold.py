"""Sequences whose turn has come while their adapter's weights are still on disk: set aside, so that nobody waits behind
them, and back in front of their tenant's others as soon as the weights are at hand."""

from __future__ import annotations

from collections.abc import Iterator

from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.core.sequence import Sequence

MOST = 16
"""Sequences that are set aside at once: it bounds how far the queue's order is run ahead of."""


class Cold:
    """In the order in which they were set aside."""

    def __init__(self) -> None:
        self._sequences: dict[str, Sequence] = {}

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences.values())

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.request_id in self._sequences

    @property
    def full(self) -> bool:
        return len(self._sequences) >= MOST

    @property
    def adapters(self) -> list[Adapter]:
        """Those that are waited for, each once."""
        wanted = {s.adapter.handle: s.adapter for s in self._sequences.values() if s.adapter is not None}
        return list(wanted.values())

    def add(self, sequence: Sequence) -> None:
        self._sequences[sequence.request_id] = sequence

    def remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request_id]

    def take(self, adapter: Adapter) -> list[Sequence]:
        """Those that waited for this adapter, latest first: put back in front one by one, they keep their order."""
        taken = [s for s in self._sequences.values() if s.adapter is adapter]
        for sequence in taken:
            del self._sequences[sequence.request_id]
        return taken[::-1]
