"""Which adapters' states differ from what was told last: so that ten thousand idle ones cost nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lorafleet_runtime.core.residency import Adapter, Residency
from lorafleet_runtime.protocol import AdapterNews, AdapterState


class Teller:
    """Keys are handles; of what is loading or has failed, negative numbers."""

    def __init__(self, residency: Residency, shown: Callable[[Adapter], AdapterState]) -> None:
        self._residency = residency
        self._shown = shown
        self._told: dict[int, AdapterState] = {}
        self._unusable: dict[str, int] = {}
        self._next = -1

    def news(self, unusable: Mapping[str, AdapterState]) -> AdapterNews | None:
        """What differs by now, also of the `unusable`; None when nothing does."""
        told: dict[int, AdapterState] = {}
        gone: list[int] = []
        for adapter in self._residency.news:
            if self._residency.knows(adapter):
                state = self._shown(adapter)
                if self._told.get(adapter.handle) != state:
                    told[adapter.handle] = state
            elif adapter.handle in self._told:
                gone.append(adapter.handle)
        self._residency.news.clear()
        for name in [name for name in self._unusable if name not in unusable]:
            gone.append(self._unusable.pop(name))
        for name, state in unusable.items():
            if name not in self._unusable:
                self._unusable[name], self._next = self._next, self._next - 1
            if self._told.get(self._unusable[name]) is not state:
                told[self._unusable[name]] = state
        self._told |= told
        for key in gone:
            del self._told[key]
        return AdapterNews(told, gone) if told or gone else None
