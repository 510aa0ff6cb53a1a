"""Which adapter revisions are known, which have their weights in pool pages, and which leaves first.

An adapter is like a sequence whose pages hold weights: it takes pages when a request needs it, keeps them while idle,
and gives them back under pressure, least valuable first [S-LoRA 5.1; DESIGN 7]. Names map to revisions here:
a new revision takes the name at once, the old one drains with its running requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from lorafleet_runtime.core.eviction import Costs, EvictionOrder, Purpose
from lorafleet_runtime.core.pages import PagePool

_SHOWN = frozenset({"pinned", "pages", "users", "waiting", "in_host", "draining", "evicted_for"})


@dataclass(slots=True, eq=False)
class Adapter:
    """One revision. `handle` is unique for the life of the engine and never reused."""

    handle: int
    id: str
    revision: str
    rank: int
    pages_needed: int
    bytes: int
    targets: tuple[str, ...]
    pinned: bool = False
    layout: int = -1  # adapters with one layout have the same ranks and targets
    pages: list[int] = field(default_factory=list)
    users: int = 0  # admitted sequences
    uses: int = 0  # sequences that were ever admitted
    waiting: int = 0  # queued sequences
    prefixes: int = 0  # pages of the prefix cache that were computed with it
    in_host: bool = True  # its weights lie in host memory; False: on disk only
    draining: bool = False
    evicted_for: Purpose | None = None  # why its pages were given up the last time
    ticket: int = 0
    news: set[Adapter] | None = None  # it enters itself here when something changes that is shown

    def __setattr__(self, name: str, value: object) -> None:
        """Of ten thousand adapters a few change between two reports, by many hands; here none is forgotten."""
        object.__setattr__(self, name, value)
        if name in _SHOWN:
            news = getattr(self, "news", None)  # not there yet while it is being made
            if news is not None:
                news.add(self)

    @property
    def resident(self) -> bool:
        return bool(self.pages)

    @property
    def at_hand(self) -> bool:
        """Whether a step could use it: its weights are in the pool, or can be copied there."""
        return self.resident or self.in_host


class Residency:
    """Adapters by name and their pages. `forget_prefixes(adapter)` drops what was cached with its weights."""

    def __init__(
        self,
        pool: PagePool,
        order: EvictionOrder | None = None,
        costs: Costs | None = None,
        forget_prefixes: Callable[[Adapter], None] = lambda adapter: None,
    ) -> None:
        self.pool = pool
        self.order = EvictionOrder(pool) if order is None else order
        self.costs = costs or Costs()
        self._forget_prefixes = forget_prefixes
        self._current: dict[str, Adapter] = {}
        self._draining: list[Adapter] = []
        self._next_handle = 0
        self.news: set[Adapter] = set()
        """Adapters that have come, gone or changed since the owner last emptied it."""
        self.loads = 0
        self.evicted: Counter[str] = Counter()
        self.pages_used = 0

    def get(self, adapter_id: str) -> Adapter | None:
        """The current revision under a name."""
        return self._current.get(adapter_id)

    def knows(self, adapter: Adapter) -> bool:
        """Whether a revision is current, or drains."""
        return self._current.get(adapter.id) is adapter or adapter in self._draining

    def all(self) -> list[Adapter]:
        """Current revisions, then the ones that drain."""
        return [*self._current.values(), *self._draining]

    @property
    def pinned_pages(self) -> int:
        return sum(a.pages_needed for a in self._current.values() if a.pinned)

    def register(
        self, adapter_id: str, revision: str, rank: int, pages: int, size: int, targets: tuple[str, ...], pinned: bool
    ) -> tuple[Adapter, list[Adapter]]:
        """Make a revision current. Returns it, and the revisions that nothing holds any more (forget their weights)."""
        adapter = Adapter(self._next_handle, adapter_id, revision, rank, pages, size, targets, pinned)
        self._next_handle += 1
        adapter.news = self.news
        self.news.add(adapter)
        gone = self.unregister(adapter_id)
        self._current[adapter_id] = adapter
        return adapter, gone

    def pin(self, adapter: Adapter, pinned: bool) -> None:
        """Change whether an adapter stays when idle."""
        if self.is_idle(adapter):
            self._use(adapter)
        adapter.pinned = pinned
        if self.is_idle(adapter):
            self._rest(adapter)

    def unregister(self, adapter_id: str) -> list[Adapter]:
        """Take a name away; its revision drains. Returns the revisions that nothing holds any more."""
        adapter = self._current.pop(adapter_id, None)
        if adapter is None:
            return []
        if self.is_idle(adapter):
            self._use(adapter)
        adapter.draining = True
        self._draining.append(adapter)
        if self.is_idle(adapter):
            self._rest(adapter)
        return self.collect()

    def collect(self) -> list[Adapter]:
        """Drained revisions without users: their pages are freed here, their weights are the caller's to forget."""
        gone = [a for a in self._draining if a.users == 0 and a.waiting == 0]
        for adapter in gone:
            self._draining.remove(adapter)
            if self.is_idle(adapter):
                self._use(adapter)
            self._forget_prefixes(adapter)
            self._drop(adapter)
        return gone

    def acquire(self, adapter: Adapter) -> bool:
        """One more admitted sequence uses the adapter. True when it just received pages and its weights must be
        uploaded. Raises OutOfPages when even eviction does not make room; then nothing has changed."""
        uploaded = not adapter.resident
        if uploaded:
            self._place(adapter)
        elif self.is_idle(adapter):
            self._use(adapter)
        adapter.users += 1
        adapter.uses += 1
        return uploaded

    def fetch(self, adapter: Adapter) -> None:
        """Give pages to an adapter that nobody uses yet. Raises OutOfPages."""
        self._place(adapter)
        if self.is_idle(adapter):
            self._rest(adapter)

    def release(self, adapter: Adapter) -> None:
        """A sequence is done with the adapter; the last one makes it idle."""
        assert adapter.users > 0, adapter.id
        adapter.users -= 1
        if self.is_idle(adapter):
            self._rest(adapter)

    def bare(self, adapter: Adapter) -> None:
        """Nothing in the prefix cache depends on the adapter any more: if it is idle, it may be given up."""
        if self.is_idle(adapter) and not adapter.ticket:
            self._put(adapter)

    def is_idle(self, adapter: Adapter) -> bool:
        """Whether its pages count as ones that may be given up."""
        return adapter.resident and adapter.users == 0 and (adapter.draining or not adapter.pinned)

    def _place(self, adapter: Adapter) -> None:
        self.order.make_room(adapter.pages_needed, "adapter")
        adapter.pages = self.pool.allocate_run(adapter.pages_needed)
        self.pages_used += len(adapter.pages)
        self.loads += 1

    def _use(self, adapter: Adapter) -> None:
        self.order.take(adapter)
        self.order.pages -= len(adapter.pages)

    def _rest(self, adapter: Adapter) -> None:
        self.order.pages += len(adapter.pages)
        if adapter.prefixes == 0:
            self._put(adapter)

    def _put(self, adapter: Adapter) -> None:
        seconds = self.costs.page if adapter.in_host else self.costs.page + self.costs.read
        self.order.put(adapter, max(adapter.uses, 1) * seconds, self._evict)

    def _evict(self, adapter: Adapter, purpose: Purpose) -> None:
        self.order.pages -= len(adapter.pages)
        adapter.evicted_for = purpose
        self.evicted[purpose] += 1
        self._drop(adapter)

    def _drop(self, adapter: Adapter) -> None:
        self.pages_used -= len(adapter.pages)
        self.pool.release(adapter.pages)
        adapter.pages = []
