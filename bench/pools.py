"""The pools that other engines have, as residencies of the production scheduler: what `bench.paging` compares with.

Both keep adapters in a region of their own, least recently used first, beside a region for KV. With fixed slots an
adapter takes a slot of the maximum rank, whatever its own (vLLM's max_loras x max_lora_rank, SGLang's memory pool); in
separate pools it takes what it needs. Everything else is the product's: the scheduler, the runner, the allocator."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from lorafleet_runtime.core.fairness.order import Fifo
from lorafleet_runtime.core.pages import OutOfPages
from lorafleet_runtime.core.prefix import Prefix
from lorafleet_runtime.core.residency import Adapter, Residency
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.sequence import Sequence


class Region(Residency):
    """Adapters in `pages` of the pool that nothing else may have. `slot`: pages that each takes; 0: its own number."""

    def __init__(self, room: Room, pages: int, slot: int) -> None:
        super().__init__(room.pool, room.order, room.costs, room.prefixes.forget)
        self._region = room.pool.allocate_run(pages)
        self._left = pages
        self._slot = slot
        self._lru: OrderedDict[int, Adapter] = OrderedDict()

    def takes(self, adapter: Adapter) -> int:
        return self._slot or adapter.pages_needed

    def has_room(self, adapter: Adapter) -> bool:
        """Whether it is here, or could be at the expense of idle ones."""
        return adapter.resident or self._left + sum(map(self.takes, self._lru.values())) >= self.takes(adapter)

    def is_idle(self, adapter: Adapter) -> bool:
        return False  # never at the disposal of KV

    def acquire(self, adapter: Adapter) -> bool:
        self._lru.pop(adapter.handle, None)
        return super().acquire(adapter)

    def release(self, adapter: Adapter) -> None:
        super().release(adapter)
        if adapter.users == 0:
            self._lru[adapter.handle] = adapter

    def _place(self, adapter: Adapter) -> None:
        if not self.has_room(adapter):
            raise OutOfPages(self.takes(adapter), self._left)
        while self._left < self.takes(adapter):
            _, oldest = self._lru.popitem(last=False)
            self._region += oldest.pages
            self._left += self.takes(oldest)
            oldest.pages = []
            self.evicted["adapter"] += 1
        self._left -= self.takes(adapter)
        adapter.pages = [self._region.pop() for _ in range(adapter.pages_needed)]
        self.loads += 1


class RegionRoom(Room):
    """A pool of which `region` pages are the adapters'."""

    def __init__(self, pages: int, max_model_len: int, region: int, slot: int) -> None:
        super().__init__(pages, max_model_len)
        self.region = Region(self, region, slot)
        self.residency = self.region
        self.prefixes.on_bare = self.region.bare

    def missing(self, sequence: Sequence, found: list[Prefix], count: int) -> int:
        adapter = sequence.adapter
        if adapter is None:
            return super().missing(sequence, found, count)
        if not self.region.has_room(adapter):
            return self.pool.total + 1
        sequence.adapter = None  # its pages are no part of this sum
        missing = super().missing(sequence, found, count)
        sequence.adapter = adapter
        return missing

    def prefetch(self, sequences: Iterable[Sequence], running: int, copied: list[Adapter]) -> list[Adapter]:
        return []


class Skipping(Fifo):
    """First come, first served, but a request whose adapter has no room lets others pass, as vLLM does."""

    def __init__(self, may_run: Callable[[Sequence], bool]) -> None:
        super().__init__()
        self._may_run = may_run

    def head(self) -> Sequence | None:
        return next((sequence for sequence in self if self._may_run(sequence)), None)
