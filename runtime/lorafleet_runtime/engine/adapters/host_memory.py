"""The two tiers below the pool: adapters packed in host memory, within a budget, and on disk beyond it.

Reading and writing take place in a thread of their own, so that a step never waits for a disk. One read of an adapter
serves all who want it."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from lorafleet_runtime.core.host_tier import HostTier
from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.engine.adapters.disk_tier import DiskTier
from lorafleet_runtime.engine.background import background_thread
from lorafleet_runtime.engine.runner import Runner
from lorafleet_runtime.model.errors import AdapterError

MOST_READS = 8
"""Adapters that are being read at once: more would only push each other out of a small budget."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The outcome of one read: `blob`, or why there is none."""

    adapter: Adapter
    blob: Tensor | None
    error: str = ""
    seconds: float = 0.0


class HostMemory:
    """`pack_again(adapter)` reads an adapter's own files anew, and `keep` moves what was read to the memory in which it
    stays; both from any thread. `pack_again` raises AdapterError."""

    def __init__(
        self, tier: HostTier, disk: DiskTier, runner: Runner, pack_again: Callable[[Adapter], Tensor],
        keep: Callable[[Tensor], Tensor],
    ) -> None:  # fmt: skip
        self.tier = tier
        self.reads = 0
        self.on_done: Callable[[], None] = lambda: None
        self._disk = disk
        self._runner = runner
        self._pack_again = pack_again
        self._keep = keep
        self._reading: dict[int, Adapter] = {}
        self._done: queue.SimpleQueue[Fetched] = queue.SimpleQueue()
        self._thread = background_thread("adapter-disk")

    def add(self, adapter: Adapter) -> None:
        """The runner has an adapter's weights; others may have to go to disk for them."""
        for leaving in self.tier.add(adapter):
            self._thread.submit(self._disk.write, leaving.handle, self._runner.take_back(leaving))

    def fetch(self, adapters: Iterable[Adapter]) -> None:
        """Have weights read that are not at hand, as far as reads are left."""
        for adapter in adapters:
            if adapter.in_host:
                self.tier.touch(adapter)
            elif adapter.handle not in self._reading and len(self._reading) < MOST_READS:
                self._reading[adapter.handle] = adapter
                self._thread.submit(self._read, adapter)

    def finished(self) -> list[Fetched]:
        """What has been read since it was last asked; the weights that came are with the runner."""
        outcomes: list[Fetched] = []
        while not self._done.empty():
            fetched = self._done.get_nowait()
            if self._reading.pop(fetched.adapter.handle, None) is None:
                continue  # forgotten meanwhile
            if fetched.blob is not None:
                self._runner.give(fetched.adapter, fetched.blob)
                self.add(fetched.adapter)
                self.reads += 1
            outcomes.append(fetched)
        return outcomes

    def forget(self, adapter: Adapter) -> None:
        """The adapter is known no more."""
        self._reading.pop(adapter.handle, None)
        self.tier.remove(adapter)
        self._thread.submit(self._disk.forget, adapter.handle)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._disk.close()

    def _read(self, adapter: Adapter) -> None:
        begun = time.perf_counter()
        try:
            blob = self._disk.restore(adapter.handle, lambda: self._pack_again(adapter))
            outcome = Fetched(adapter, self._keep(blob))
        except AdapterError as error:
            outcome = Fetched(adapter, None, str(error))
        except Exception as error:
            # Whatever breaks here must fail this adapter alone, never the engine.
            outcome = Fetched(adapter, None, f"{type(error).__name__}: {error}")
        self._done.put(replace(outcome, seconds=time.perf_counter() - begun))
        self.on_done()
