"""Which adapter revisions are known, which have their weights in pool pages, and which leaves first.

An adapter is like a sequence whose pages hold weights: it takes pages when a request needs it, keeps them while idle,
and gives them back under pressure, least recently used first [S-LoRA 5.1; DESIGN 7]. Names map to revisions here:
a new revision takes the name at once, the old one drains with its running requests.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from lorafleet_runtime.core.pages import OutOfPages, PagePool


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
    waiting: int = 0  # queued sequences
    draining: bool = False

    @property
    def resident(self) -> bool:
        return bool(self.pages)


class Residency:
    """Adapters by name, their pages, and the order in which idle ones are evicted."""

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self._current: dict[str, Adapter] = {}
        self._draining: list[Adapter] = []
        self._idle: OrderedDict[int, Adapter] = OrderedDict()  # resident, unused, unpinned; oldest first
        self._next_handle = 0
        self.loads = 0
        self.evictions = 0

    def get(self, adapter_id: str) -> Adapter | None:
        """The current revision under a name."""
        return self._current.get(adapter_id)

    def all(self) -> list[Adapter]:
        """Current revisions, then the ones that drain."""
        return [*self._current.values(), *self._draining]

    @property
    def pages_used(self) -> int:
        return sum(len(a.pages) for a in self.all())

    @property
    def evictable(self) -> int:
        return sum(len(a.pages) for a in self._idle.values())

    def evictable_for(self, adapter: Adapter | None) -> int:
        """Pages of idle adapters other than this one, which is not evicted for its own sequence."""
        own = len(adapter.pages) if adapter is not None and adapter.handle in self._idle else 0
        return self.evictable - own

    @property
    def pinned_pages(self) -> int:
        return sum(a.pages_needed for a in self._current.values() if a.pinned)

    def register(
        self, adapter_id: str, revision: str, rank: int, pages: int, size: int, targets: tuple[str, ...], pinned: bool
    ) -> tuple[Adapter, list[Adapter]]:
        """Make a revision current. Returns it, and the revisions that nothing holds any more (forget their weights)."""
        adapter = Adapter(self._next_handle, adapter_id, revision, rank, pages, size, targets, pinned)
        self._next_handle += 1
        gone = self.unregister(adapter_id)
        self._current[adapter_id] = adapter
        return adapter, gone

    def pin(self, adapter: Adapter, pinned: bool) -> None:
        """Change whether an adapter stays when idle."""
        adapter.pinned = pinned
        self._idle.pop(adapter.handle, None)
        if adapter.resident and adapter.users == 0 and not pinned:
            self._idle[adapter.handle] = adapter

    def unregister(self, adapter_id: str) -> list[Adapter]:
        """Take a name away; its revision drains. Returns the revisions that nothing holds any more."""
        adapter = self._current.pop(adapter_id, None)
        if adapter is None:
            return []
        adapter.draining = True
        self._draining.append(adapter)
        return self.collect()

    def collect(self) -> list[Adapter]:
        """Drained revisions without users: their pages are freed here, their weights are the caller's to forget."""
        gone = [a for a in self._draining if a.users == 0 and a.waiting == 0]
        for adapter in gone:
            self._draining.remove(adapter)
            self._drop(adapter)
        return gone

    def acquire(self, adapter: Adapter) -> bool:
        """One more admitted sequence uses the adapter. True when it just received pages and its weights must be
        uploaded. Raises OutOfPages when even eviction does not make room; then nothing has changed."""
        uploaded = False
        if not adapter.resident:
            self.make_room(adapter.pages_needed)
            adapter.pages = self.pool.allocate_run(adapter.pages_needed)
            self.loads += 1
            uploaded = True
        self._idle.pop(adapter.handle, None)
        adapter.users += 1
        return uploaded

    def release(self, adapter: Adapter) -> None:
        """A sequence is done with the adapter; the last one makes it idle, most recently used."""
        assert adapter.users > 0, adapter.id
        adapter.users -= 1
        if adapter.users == 0 and (adapter.draining or not adapter.pinned):
            self._idle[adapter.handle] = adapter

    def make_room(self, pages: int) -> None:
        """Evict idle adapters until `pages` are free. Raises OutOfPages, evicting nothing, when that cannot do."""
        if self.pool.free >= pages:
            return
        if self.pool.free + self.evictable < pages:
            raise OutOfPages(pages, self.pool.free + self.evictable)
        while self.pool.free < pages:
            _, adapter = self._idle.popitem(last=False)
            self._drop(adapter)
            self.evictions += 1

    def _drop(self, adapter: Adapter) -> None:
        self._idle.pop(adapter.handle, None)
        self.pool.release(adapter.pages)
        adapter.pages = []
