"""The unified pool as sequences see it: KV, prefixes and adapters in one memory, both pages and adapter or neither.

What is free and what is idle count alike: running, incoming and evictable pages are one sum. Knows no queue and no
order of requests."""

from __future__ import annotations

from collections.abc import Iterable

from lorafleet_runtime.core.eviction import Costs, EvictionOrder
from lorafleet_runtime.core.pages import PAGE_TOKENS, OutOfPages, PagePool, pages_for_tokens
from lorafleet_runtime.core.prefix import Prefix, PrefixCache
from lorafleet_runtime.core.residency import Adapter, Residency
from lorafleet_runtime.core.sequence import Sequence

COPYING_SHARE = 0.25
"""Of a step's usual time, what copying adapters into pages may take where several come at once."""


class Room:
    """One pool of `pages`, who may live in it, and who leaves first."""

    def __init__(self, pages: int, max_model_len: int, *, prefix_caching: bool = True) -> None:
        self.pool = PagePool(pages)
        self.costs = Costs()
        self.order = EvictionOrder(self.pool)
        self.prefixes = PrefixCache(self.pool, self.order, self.costs, enabled=prefix_caching)
        self.residency = Residency(self.pool, self.order, self.costs, self.prefixes.forget)
        self.prefixes.on_bare = self.residency.bare
        self._max_model_len = max_model_len

    @property
    def sequence_pages(self) -> int:
        """Pages that running sequences hold; what several share counts once."""
        return self.pool.total - self.pool.free - self.residency.pages_used - self.prefixes.idle

    def reason_it_never_fits(self, prompt_tokens: int, adapter: Adapter | None) -> str | None:
        """Why a prompt could not run even on an empty replica, as a sentence; None when it can."""
        if prompt_tokens >= self._max_model_len:
            return (
                f"the prompt has {prompt_tokens} tokens; with at least one token of output that is more than the "
                f"context of {self._max_model_len}"
            )
        pinned = self.residency.pinned_pages - (adapter.pages_needed if adapter and adapter.pinned else 0)
        needed = pages_for_tokens(self._max_model_len) + (adapter.pages_needed if adapter else 0) + pinned
        if needed > self.pool.total:
            return (
                f"a full context, the adapter and the pinned adapters need {needed} pages, the pool has "
                f"{self.pool.total}: raise engine.memory or lower maxModelLen"
            )
        return None

    def may_copy(self, adapter: Adapter | None, copied: list[Adapter]) -> bool:
        """Whether a step that copies some adapters' weights may copy this one's too, without becoming much longer for
        those that decode. The first is always copied."""
        if adapter is None or adapter.resident or not copied:
            return True
        pages = adapter.pages_needed + sum(other.pages_needed for other in copied)
        return pages * self.costs.page <= COPYING_SHARE * self.costs.step

    def missing(self, sequence: Sequence, found: list[Prefix], count: int) -> int:
        """Pages that would have to be given back by running sequences before a waiting one's next `count` tokens fit
        after the prefix that was `found`, its adapter included; 0 when they fit."""
        wanted = pages_for_tokens(PAGE_TOKENS * len(found) + count) - len(found)
        # What it is about to hold itself is idle now, and not to be given up for it.
        own = self.prefixes.idle_pages(found)
        if sequence.adapter is not None:
            if not sequence.adapter.resident:
                wanted += sequence.adapter.pages_needed
            elif self.residency.is_idle(sequence.adapter):
                own += len(sequence.adapter.pages)
        return max(0, wanted - self.pool.free - (self.order.pages - own))

    def gain(self, running: Sequence, found: list[Prefix]) -> int:
        """Pages that another sequence, which begins with the prefix that was `found`, could have if this one gave back
        its own: not those that somebody else reads as well."""
        alone = sum(prefix.users == 1 and prefix not in found for prefix in running.prefixes)
        return len(running.pages) - len(running.prefixes) + alone

    def admit(self, sequence: Sequence, found: list[Prefix], count: int) -> list[Adapter]:
        """Adapter and pages for a sequence's first `count` tokens after the prefix that was `found`, all or nothing: an
        adapter that came without its sequence's pages would only push others out. Returns the adapter if it must be
        uploaded. Raises OutOfPages."""
        missing = self.missing(sequence, found, count)
        if missing:
            raise OutOfPages(missing, 0)
        shared = self.prefixes.hold(found)
        uploads: list[Adapter] = []
        if sequence.adapter is not None and self.residency.acquire(sequence.adapter):
            uploads.append(sequence.adapter)
        wanted = pages_for_tokens(PAGE_TOKENS * len(found) + count) - len(found)
        self.order.make_room(wanted, "prompt")
        sequence.pages = shared + self.pool.allocate(wanted)
        sequence.prefixes = list(found)
        sequence.computed = PAGE_TOKENS * len(found)
        if not sequence.admissions:
            sequence.cached = min(sequence.computed, sequence.prompt_len)
            self.prefixes.asked += sequence.prompt_len
            self.prefixes.hits += sequence.cached
        return uploads

    def extend(self, sequence: Sequence, count: int) -> None:
        """Pages for `count` more tokens of a running sequence, at the expense of what is idle. Raises OutOfPages."""
        missing = pages_for_tokens(sequence.computed + count) - len(sequence.pages)
        if missing > 0:
            self.order.make_room(missing, "decode")
            sequence.pages += self.pool.allocate(missing)

    def extend_freely(self, sequence: Sequence, count: int, kept: int) -> int:
        """Like `extend`, at nobody's expense: only from free pages, of which `kept` stay free. Returns for how many of
        the `count` tokens there are pages."""
        missing = pages_for_tokens(sequence.computed + count) - len(sequence.pages)
        if missing > 0:
            sequence.pages += self.pool.allocate(max(0, min(missing, self.pool.free - kept)))
        return min(count, PAGE_TOKENS * len(sequence.pages) - sequence.computed)

    def free(self, sequence: Sequence) -> None:
        """Give back pages and adapter. What the prefix cache does not keep is to be computed again."""
        self.prefixes.release(sequence.prefixes)
        self.pool.release(sequence.pages)
        sequence.prefixes = []
        sequence.pages = []
        sequence.computed = 0
        if sequence.adapter is not None:
            self.residency.release(sequence.adapter)

    def prefetch(self, sequences: Iterable[Sequence], running: int, copied: list[Adapter]) -> list[Adapter]:
        """Pages for the adapters of sequences that come next, in order, as long as pages are free beyond one for each
        running sequence: nobody is evicted for a guess. Their weights travel with a step that runs anyway, and copies
        those in `copied` already."""
        fetched: list[Adapter] = []
        for adapter in (sequence.adapter for sequence in sequences):
            if adapter is None or adapter.resident or not adapter.in_host:
                continue
            if not self.may_copy(adapter, copied + fetched):
                break
            if self.pool.free < adapter.pages_needed + running:
                break
            self.residency.fetch(adapter)
            fetched.append(adapter)
        return fetched
