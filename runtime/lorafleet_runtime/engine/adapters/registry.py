"""The engine's adapters by name: being read, usable, failed, draining. Reading takes place in threads of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from lorafleet_runtime.core.adapter_room import why_no_room
from lorafleet_runtime.core.host_tier import HostTier
from lorafleet_runtime.core.residency import Adapter, Residency
from lorafleet_runtime.engine.adapters.disk_tier import DiskTier
from lorafleet_runtime.engine.adapters.host_memory import HostMemory
from lorafleet_runtime.engine.adapters.loader import AdapterLoader, Loaded
from lorafleet_runtime.engine.adapters.news import Teller
from lorafleet_runtime.engine.runner import Runner
from lorafleet_runtime.model.lora import PackedAdapter
from lorafleet_runtime.protocol import AdapterNews, AdapterState, LoadAdapter


class Adapters:
    """`changed`: an adapter's state did, since the owner last set it to False."""

    def __init__(
        self, residency: Residency, loader: AdapterLoader, runner: Runner, tier: HostTier,
        disk: DiskTier, max_model_len: int,
    ) -> None:  # fmt: skip
        self.changed = True
        self.memory = HostMemory(tier, disk, runner, self._pack_again, loader.reader.keep)
        self._loader = loader
        self._residency = residency
        self._runner = runner
        self._max_model_len = max_model_len
        self._orders: dict[int, LoadAdapter] = {}  # by handle: where a usable revision's own files are
        self._unusable: dict[str, AdapterState] = {}  # loading or failed, by adapter id
        self._teller = Teller(residency, _adapter_state)

    def states(self) -> list[AdapterState]:
        """Every revision that is known here."""
        return [_adapter_state(adapter) for adapter in self._residency.all()] + list(self._unusable.values())

    def news(self) -> AdapterNews | None:
        """What of `states` has changed since the last call."""
        return self._teller.news(self._unusable)

    def adopt(self) -> tuple[list[Adapter], list[tuple[Adapter, str]]]:
        """Give names to what the loader has finished. Returns the adapters that are back from disk, and those that
        cannot be had from there, with the reason: these are usable no more."""
        for loaded in self._loader.finished():
            self._adopt(loaded)
        came: list[Adapter] = []
        lost: list[tuple[Adapter, str]] = []
        for fetched in self.memory.finished():
            self.changed = True
            if fetched.blob is not None:
                came.append(fetched.adapter)
                self._residency.costs.saw_read(fetched.seconds, fetched.adapter.pages_needed)
            else:
                lost.append((fetched.adapter, fetched.error))
                self._lose(fetched.adapter, fetched.error)
        return came, lost

    def fetch(self, adapters: Iterable[Adapter]) -> None:
        """Have adapters read from disk that are wanted soon."""
        self.memory.fetch(adapters)

    def wake_on_loaded(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, from a thread, when something has been read."""
        self._loader.on_done = self.memory.on_done = wake

    def close(self) -> None:
        self._loader.close()
        self.memory.close()

    def unload(self, adapter: str) -> None:
        """Take a name away; what runs on it finishes."""
        self._unusable.pop(adapter, None)
        self._loader.cancel(adapter)
        self._forget(self._residency.unregister(adapter))
        self.changed = True

    def load(self, message: LoadAdapter) -> None:
        """Have a revision read, in a thread, unless it is here."""
        current = self._residency.get(message.adapter)
        if current is not None and current.revision == message.revision:
            self._residency.pin(current, message.pinned)
            self._unusable.pop(message.adapter, None)
            self._loader.cancel(message.adapter)
        else:
            self._unusable[message.adapter] = AdapterState(
                message.adapter, message.revision, "Loading", pinned=message.pinned
            )
            self._loader.submit(message)
        self.changed = True

    def _adopt(self, loaded: Loaded) -> None:
        """Give a revision its name, or keep the reason why it cannot have it."""
        message = loaded.message
        self.changed = True
        reason, text = loaded.reason, loaded.error
        if loaded.packed is not None and (text := self._why_no_room(message.adapter, loaded.packed)):
            reason = "NoRoom"
        if loaded.packed is None or reason:
            self._unusable[message.adapter] = AdapterState(
                message.adapter, message.revision, "Failed", reason=reason, message=text
            )
            return
        self._unusable.pop(message.adapter, None)
        adapter, gone = self._residency.register(
            message.adapter,
            message.revision,
            loaded.rank,
            loaded.packed.layout.pages,
            loaded.packed.blob.nbytes,
            loaded.targets,
            message.pinned,
        )
        adapter.layout = self._runner.register(adapter, loaded.packed)
        self._orders[adapter.handle] = message
        self.memory.add(adapter)
        self._forget(gone)

    def _why_no_room(self, adapter: str, packed: PackedAdapter) -> str:
        """Why an adapter could never run here, or nothing."""
        residency, replaced = self._residency, self._residency.get(adapter)
        own = replaced.pages_needed if replaced is not None and replaced.pinned else 0
        return why_no_room(
            adapter, packed.layout.pages, pinned=residency.pinned_pages - own, total=residency.pool.total,
            page_bytes=self._runner.pool[:, 0].nbytes, max_model_len=self._max_model_len,
        )  # fmt: skip

    def collect(self) -> None:
        """Forget the revisions that nothing holds any more."""
        gone = self._residency.collect()
        self._forget(gone)
        self.changed = self.changed or bool(gone)

    def _forget(self, adapters: list[Adapter]) -> None:
        for adapter in adapters:
            del self._orders[adapter.handle]
            self.memory.forget(adapter)
            self._runner.forget(adapter)

    def _lose(self, adapter: Adapter, why: str) -> None:
        if self._residency.get(adapter.id) is adapter:
            self._unusable[adapter.id] = AdapterState(
                adapter.id, adapter.revision, "Failed", reason="FetchFailed", message=why, pinned=adapter.pinned
            )
            self._forget(self._residency.unregister(adapter.id))

    def _pack_again(self, adapter: Adapter) -> Tensor:
        return self._loader.reader.read(self._orders[adapter.handle].folder)[1].blob


def _adapter_state(adapter: Adapter) -> AdapterState:
    return AdapterState(
        id=adapter.id,
        revision=adapter.revision,
        state="Draining" if adapter.draining else "Ready",
        rank=adapter.rank,
        pages=adapter.pages_needed,
        bytes=adapter.bytes,
        targets=list(adapter.targets),
        resident=adapter.resident,
        level="pool" if adapter.resident else "host" if adapter.in_host else "disk",
        evicted_for=adapter.evicted_for or "",
        pinned=adapter.pinned,
        running=adapter.users,
        waiting=adapter.waiting,
    )
