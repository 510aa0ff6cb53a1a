"""The adapters of a rank other than the first: read, registered, stored and fetched as it is told.

Files are read and written in threads of their own; their outcomes come back as messages to the rank's one loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.engine.adapters.disk_tier import DiskTier
from lorafleet_runtime.engine.adapters.loader import AdapterReader, explain
from lorafleet_runtime.engine.background import background_thread
from lorafleet_runtime.engine.ranks.messages import (
    AdapterFetched,
    AdapterRead,
    DropAdapter,
    FetchAdapter,
    ForgetAdapter,
    FromRank,
    Order,
    ReadAdapter,
    RegisterAdapter,
    StoreAdapter,
)
from lorafleet_runtime.engine.runner import Runner
from lorafleet_runtime.model.lora import PackedAdapter


@dataclass(frozen=True, slots=True)
class Read:
    """What a thread has read for a ticket."""

    ticket: int
    packed: PackedAdapter | None = None
    reason: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a thread has brought back from disk."""

    handle: int
    blob: Tensor | None
    error: str = ""


class RankAdapters:
    """`done(outcome)` is called from threads and brings the outcome to the loop, which hands it to `handle`."""

    def __init__(
        self,
        runner: Runner,
        reader: AdapterReader,
        disk: DiskTier,
        done: Callable[[Read | Fetched], None],
        answer: Callable[[FromRank], None],
    ) -> None:
        self.by_handle: dict[int, Adapter] = {}
        self._runner = runner
        self._reader = reader
        self._disk = disk
        self._done = done
        self._answer = answer
        self._wanted: dict[int, str] = {}  # folders by ticket
        self._read: dict[int, PackedAdapter] = {}
        self._folders: dict[int, str] = {}  # by handle
        self._reading = background_thread("adapter-reader")
        self._storing = background_thread("adapter-disk")

    def handle(self, message: Order | Read | Fetched) -> None:
        """One message of the first rank, or one outcome of a thread."""
        match message:
            case ReadAdapter():
                self._wanted[message.ticket] = message.folder
                self._reading.submit(self._read_files, message)
            case Read():
                self._have_read(message)
            case DropAdapter():
                self._wanted.pop(message.ticket, None)
                self._read.pop(message.ticket, None)
            case RegisterAdapter():
                adapter = Adapter(message.handle, "", "", 0, 0, 0, ())
                adapter.layout = self._runner.register(adapter, self._read.pop(message.ticket))
                self.by_handle[message.handle] = adapter
                self._folders[message.handle] = self._wanted.pop(message.ticket)
            case StoreAdapter():
                blob = self._runner.take_back(self.by_handle[message.handle])
                self._storing.submit(self._disk.write, message.handle, blob)
            case FetchAdapter():
                self._storing.submit(self._fetch, message.handle, self._folders.get(message.handle, ""))
            case Fetched():
                self._have_fetched(message)
            case ForgetAdapter():
                self._runner.forget(self.by_handle.pop(message.handle))
                del self._folders[message.handle]
                self._storing.submit(self._disk.forget, message.handle)

    def _have_read(self, read: Read) -> None:
        if read.ticket not in self._wanted:
            return
        if read.packed is None:
            self._answer(AdapterRead(read.ticket, 0, read.reason, read.error))
        else:
            self._read[read.ticket] = read.packed
            self._answer(AdapterRead(read.ticket, read.packed.layout.pages))

    def _have_fetched(self, fetched: Fetched) -> None:
        adapter = self.by_handle.get(fetched.handle)
        if adapter is not None and fetched.blob is not None:
            self._runner.give(adapter, fetched.blob)
        self._answer(AdapterFetched(fetched.handle, fetched.error))

    def _read_files(self, message: ReadAdapter) -> None:
        try:
            _, packed = self._reader.read(message.folder)
            self._done(Read(message.ticket, packed))
        except Exception as error:
            self._done(Read(message.ticket, None, *explain(error, message.folder)))

    def _fetch(self, handle: int, folder: str) -> None:
        try:
            self._done(Fetched(handle, self._disk.restore(handle, lambda: self._reader.read(folder)[1].blob)))
        except Exception as error:
            self._done(Fetched(handle, None, explain(error, folder)[1]))
