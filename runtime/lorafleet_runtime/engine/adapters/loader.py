"""Reads adapters' files and lays them out, in a thread of its own: a step never waits for a disk."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lorafleet_runtime.engine.background import background_thread
from lorafleet_runtime.model.adapter import read_adapter
from lorafleet_runtime.model.adapter_weights import AdapterWeights
from lorafleet_runtime.model.base_weights import BaseWeights
from lorafleet_runtime.model.collectives import Partition
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.errors import AdapterError
from lorafleet_runtime.model.lora import PackedAdapter, pack
from lorafleet_runtime.model.parallel import Shard, rank_config, shard_adapter
from lorafleet_runtime.protocol import LoadAdapter


@dataclass(frozen=True, slots=True)
class Loaded:
    """The outcome of one load: `packed`, or `reason` and `error`."""

    message: LoadAdapter
    packed: PackedAdapter | None = None
    rank: int = 0
    targets: tuple[str, ...] = ()
    reason: str = ""
    error: str = ""


def as_it_is(blob: Tensor) -> Tensor:
    """Weights stay in the memory in which they were packed."""
    return blob


@dataclass(frozen=True, slots=True)
class AdapterReader:
    """From an adapter's folder to its pages, for one base model and one rank's part of it."""

    config: DecoderConfig
    page_elements: int
    dtype: torch.dtype
    max_rank: int
    shard: Shard
    partition: Partition
    base: BaseWeights
    grain: int = 1
    keep: Callable[[Tensor], Tensor] = as_it_is
    """Moves a packed adapter to the memory in which it stays; from any thread."""
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def read(self, folder: str) -> tuple[AdapterWeights, PackedAdapter]:
        """What the adapter is, and this rank's part of it, packed; from any thread. Raises AdapterError."""
        with self._one_at_a_time:
            try:
                weights = read_adapter(Path(folder), self.config, self.max_rank, self.base)
            finally:
                self.base.forget()
        part = shard_adapter(weights, self.shard, self.partition)
        config = rank_config(self.config, self.shard.ranks)
        packed = pack(part, config, self.page_elements, self.dtype, self.grain)
        return weights, PackedAdapter(packed.layout, self.keep(packed.blob))


def explain(error: Exception, folder: str) -> tuple[str, str]:
    """(reason, text) for the adapter's owner. A reader's bug must fail this adapter alone, never the engine."""
    if isinstance(error, AdapterError):
        return error.reason, str(error)
    return "InvalidAdapter", f"reading {folder}: {type(error).__name__}: {error}"


class AdapterLoader:
    """`submit` and `cancel` on the engine's thread; `finished` gives what has been read since it was last asked."""

    def __init__(self, reader: AdapterReader) -> None:
        self.reader = reader
        self._wanted: dict[str, LoadAdapter] = {}
        self._done: queue.SimpleQueue[Loaded] = queue.SimpleQueue()
        self._thread = background_thread("adapter-loader")
        self.on_done: Callable[[], None] = lambda: None

    def submit(self, message: LoadAdapter) -> None:
        """Start reading; a later submit or cancel for the same adapter makes this one's outcome void."""
        self._wanted[message.adapter] = message
        self._thread.submit(self._load, message)

    def cancel(self, adapter: str) -> None:
        self._wanted.pop(adapter, None)

    def finished(self) -> list[Loaded]:
        """Outcomes that are still wanted."""
        outcomes: list[Loaded] = []
        while not self._done.empty():
            loaded = self._done.get_nowait()
            if self._wanted.get(loaded.message.adapter) is loaded.message:
                del self._wanted[loaded.message.adapter]
                outcomes.append(loaded)
        return outcomes

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _load(self, message: LoadAdapter) -> None:
        try:
            weights, packed = self.reader.read(message.folder)
            outcome = Loaded(message, packed, weights.rank, weights.targets)
        except Exception as error:
            reason, text = explain(error, message.folder)
            outcome = Loaded(message, reason=reason, error=text)
        self._done.put(outcome)
        self.on_done()
