"""Pages for sequences and the adapters that they need: both or neither. Knows no queue and no order."""

from __future__ import annotations

from collections.abc import Iterable

from lorafleet_runtime.core.pages import OutOfPages, PagePool, pages_for_tokens
from lorafleet_runtime.core.residency import Adapter, Residency
from lorafleet_runtime.core.sequence import Sequence


class Room:
    """The pool as sequences see it."""

    def __init__(self, pool: PagePool, residency: Residency, max_model_len: int) -> None:
        self._pool = pool
        self._residency = residency
        self._max_model_len = max_model_len

    def reason_it_never_fits(self, prompt_tokens: int, adapter: Adapter | None) -> str | None:
        """Why a prompt could not run even on an empty replica, as a sentence; None when it can."""
        if prompt_tokens >= self._max_model_len:
            return (
                f"the prompt has {prompt_tokens} tokens; with at least one token of output that is more than the "
                f"context of {self._max_model_len}"
            )
        pinned = self._residency.pinned_pages - (adapter.pages_needed if adapter and adapter.pinned else 0)
        needed = pages_for_tokens(self._max_model_len) + (adapter.pages_needed if adapter else 0) + pinned
        if needed > self._pool.total:
            return (
                f"a full context, the adapter and the pinned adapters need {needed} pages, the pool has "
                f"{self._pool.total}: raise engine.memory or lower maxModelLen"
            )
        return None

    def missing(self, sequence: Sequence, count: int) -> int:
        """Pages that would have to be given back by running sequences before a waiting one's first `count` tokens fit,
        its adapter included; 0 when they fit."""
        wanted = pages_for_tokens(count)
        if sequence.adapter is not None and not sequence.adapter.resident:
            wanted += sequence.adapter.pages_needed
        if wanted <= self._pool.free:
            return 0
        return max(0, wanted - self._pool.free - self._residency.evictable_for(sequence.adapter))

    def admit(self, sequence: Sequence, count: int) -> list[Adapter]:
        """Adapter and pages for a sequence's first `count` tokens, both or neither: an adapter that came without its
        sequence's pages would only push others out. Returns the adapter if it must be uploaded. Raises OutOfPages."""
        adapter = sequence.adapter
        wanted = pages_for_tokens(count)
        if adapter is None:
            self._residency.make_room(wanted)
            sequence.pages = self._pool.allocate(wanted)
            return []
        if not adapter.resident:
            self._residency.make_room(wanted + adapter.pages_needed)
        # Acquired before room is made for the pages: an idle adapter must not be evicted for its own sequence.
        uploaded = self._residency.acquire(adapter)
        try:
            self._residency.make_room(wanted)
        except OutOfPages:
            self._residency.release(adapter)
            raise
        sequence.pages = self._pool.allocate(wanted)
        return [adapter] if uploaded else []

    def extend(self, sequence: Sequence, count: int) -> None:
        """Pages for `count` more tokens of a running sequence, at the expense of idle adapters. Raises OutOfPages."""
        missing = pages_for_tokens(sequence.computed + count) - len(sequence.pages)
        if missing > 0:
            self._residency.make_room(missing)
            sequence.pages += self._pool.allocate(missing)

    def free(self, sequence: Sequence) -> None:
        """Give back pages and adapter; what was computed is to be computed again."""
        self._pool.release(sequence.pages)
        sequence.pages = []
        sequence.computed = 0
        if sequence.adapter is not None:
            self._residency.release(sequence.adapter)

    def prefetch(self, sequences: Iterable[Sequence], running: int) -> list[Adapter]:
        """Pages for the adapters of sequences that come next, in order, as long as pages are free beyond one for each
        running sequence: nobody is evicted for a guess. Their weights travel with a step that runs anyway."""
        fetched: list[Adapter] = []
        for adapter in (sequence.adapter for sequence in sequences):
            if adapter is None or adapter.resident:
                continue
            if self._pool.free < adapter.pages_needed + running:
                break
            self._residency.acquire(adapter)
            self._residency.release(adapter)
            fetched.append(adapter)
        return fetched
