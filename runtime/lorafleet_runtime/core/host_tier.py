"""Which adapters' weights lie in host memory, within a bound of bytes; the least recently wanted leave first.

Below the pool: what is here can be copied into pages by a step; what is not has to be read from disk before."""

from __future__ import annotations

from collections import OrderedDict

from lorafleet_runtime.core.residency import Adapter


class HostTier:
    """Bookkeeping only; an adapter's `in_host` says where it is."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.used = 0
        self._held: OrderedDict[int, Adapter] = OrderedDict()  # by handle, least recently wanted first

    def add(self, adapter: Adapter) -> list[Adapter]:
        """Its weights have come. Returns those that must leave for it; one that is larger than the whole budget is
        alone."""
        leaving: list[Adapter] = []
        while self._held and self.used + adapter.bytes > self.budget:
            _, oldest = self._held.popitem(last=False)
            self.used -= oldest.bytes
            oldest.in_host = False
            leaving.append(oldest)
        self._held[adapter.handle] = adapter
        self.used += adapter.bytes
        adapter.in_host = True
        return leaving

    def touch(self, adapter: Adapter) -> None:
        """A request wants it."""
        if adapter.in_host:
            self._held.move_to_end(adapter.handle)

    def remove(self, adapter: Adapter) -> None:
        """It is known no more."""
        if self._held.pop(adapter.handle, None) is not None:
            self.used -= adapter.bytes
            adapter.in_host = False
