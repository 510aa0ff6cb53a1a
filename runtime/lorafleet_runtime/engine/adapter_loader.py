"""Reads adapters' files and lays them out, in a thread of its own: a step never waits for a disk."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lorafleet_runtime.model.adapter import read_adapter
from lorafleet_runtime.model.base_weights import DecoderWeights
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.errors import AdapterError
from lorafleet_runtime.model.lora import PackedAdapter, pack
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


class AdapterLoader:
    """`submit` and `cancel` on the engine's thread; `finished` gives what has been read since it was last asked."""

    def __init__(self, model: Decoder, page_elements: int, max_rank: int) -> None:
        self._base = DecoderWeights(model)
        self._config = model.config
        self._page_elements = page_elements
        self._dtype = model.dtype
        self._max_rank = max_rank
        self._wanted: dict[str, LoadAdapter] = {}
        self._done: queue.SimpleQueue[Loaded] = queue.SimpleQueue()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter-loader")
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
            weights = read_adapter(Path(message.folder), self._config, self._max_rank, self._base)
            packed = pack(weights, self._config, self._page_elements, self._dtype)
            outcome = Loaded(message, packed, weights.rank, weights.targets)
        except AdapterError as error:
            outcome = Loaded(message, reason=error.reason, error=str(error))
        except Exception as error:
            # A reader's bug must fail this adapter alone, never the engine.
            outcome = Loaded(
                message, reason="InvalidAdapter", error=f"reading {message.folder}: {type(error).__name__}: {error}"
            )
        self._base.forget()
        self._done.put(outcome)
        self.on_done()
