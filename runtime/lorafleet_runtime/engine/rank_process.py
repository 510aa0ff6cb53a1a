"""A rank other than the first, as a process: it repeats on its part what the first rank tells it.

`python -m lorafleet_runtime.engine.rank_process --rank I --rendezvous FILE`, started by `engine.ranks`.
Frames come on standard input and answers go to standard output; it ends when standard input does."""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.engine.adapter_loader import AdapterReader, explain
from lorafleet_runtime.engine.load import load_rank
from lorafleet_runtime.engine.memory import give_back
from lorafleet_runtime.engine.rank_group import RankGroup
from lorafleet_runtime.engine.rank_messages import (
    AdapterRead,
    Begin,
    DropAdapter,
    Failed,
    ForgetAdapter,
    FromRank,
    Load,
    Loaded,
    ReadAdapter,
    RegisterAdapter,
    Step,
    ToRank,
    batch_of,
    decode_to_rank,
    frame,
    read_frame,
)
from lorafleet_runtime.engine.runner import Runner, page_elements
from lorafleet_runtime.model.calibration import choose_forms
from lorafleet_runtime.model.checkpoint import read_config
from lorafleet_runtime.model.lora import PackedAdapter
from lorafleet_runtime.model.parallel import Shard
from lorafleet_runtime.model.threads import set_threads


@dataclass(frozen=True, slots=True)
class _Read:
    """What the reading thread has for a ticket."""

    ticket: int
    packed: PackedAdapter | None = None
    reason: str = ""
    error: str = ""


class RankWorker:
    """One thread runs everything but the reading of adapters. `inbox` has the first rank's messages, in order."""

    def __init__(self, rank: int, rendezvous: Path, answers: BinaryIO) -> None:
        self.inbox: queue.SimpleQueue[ToRank | _Read] = queue.SimpleQueue()
        self._rank = rank
        self._rendezvous = rendezvous
        self._answers = answers
        self._adapters: dict[int, Adapter] = {}
        self._read: dict[int, PackedAdapter] = {}
        self._wanted: set[int] = set()  # tickets
        self._reading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter-reader")

    def run(self) -> None:
        """Load, meet the others, then do what is told until the process ends."""
        torch.set_grad_enabled(False)
        load = self.inbox.get()
        assert isinstance(load, Load), load
        config = EngineConfig.from_json(load.config)
        shard = Shard(self._rank, config.tensor_parallel)
        decoder = read_config(Path(config.model))
        set_threads(config.threads)
        model = load_rank(config, decoder, shard, lambda fraction: None)
        choose_forms(model)
        give_back()
        elements = page_elements(model.config.kv_dim)
        self._reader = AdapterReader(decoder, elements, model.dtype, config.max_lora_rank, shard, config.partition)
        self._answer(Loaded())
        begin = self.inbox.get()
        assert isinstance(begin, Begin), begin
        model.collectives = RankGroup(self._rendezvous, shard.rank, shard.ranks, model.embedding.device)
        self._runner = Runner(model, begin.total_pages, config.partition)
        while True:
            self._handle(self.inbox.get())

    def _handle(self, message: ToRank | _Read) -> None:
        match message:
            case Step():
                self._runner.logits(batch_of(message, self._adapters))
            case ReadAdapter():
                self._wanted.add(message.ticket)
                self._reading.submit(self._read_adapter, message)
            case _Read():
                self._have_read(message)
            case DropAdapter():
                self._wanted.discard(message.ticket)
                self._read.pop(message.ticket, None)
            case RegisterAdapter():
                self._wanted.discard(message.ticket)
                adapter = Adapter(message.handle, "", "", 0, 0, 0, ())
                adapter.layout = self._runner.register(adapter, self._read.pop(message.ticket))
                self._adapters[message.handle] = adapter
            case ForgetAdapter():
                self._runner.forget(self._adapters.pop(message.handle))

    def _read_adapter(self, message: ReadAdapter) -> None:
        try:
            _, packed = self._reader.read(message.folder)
            self.inbox.put(_Read(message.ticket, packed))
        except Exception as error:
            self.inbox.put(_Read(message.ticket, None, *explain(error, message.folder)))

    def _have_read(self, read: _Read) -> None:
        if read.ticket not in self._wanted:
            return
        if read.packed is None:
            self._answer(AdapterRead(read.ticket, 0, read.reason, read.error))
        else:
            self._read[read.ticket] = read.packed
            self._answer(AdapterRead(read.ticket, read.packed.layout.pages))

    def _answer(self, message: FromRank) -> None:
        self._answers.write(frame(message))
        self._answers.flush()


def _listen(pipe: BinaryIO, inbox: queue.SimpleQueue[ToRank | _Read]) -> None:
    """The first rank holds the other end alone: when it ends, so does this process, whatever it is doing."""
    while (raw := read_frame(pipe)) is not None:
        inbox.put(decode_to_rank(raw))
    os._exit(0)


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="lorafleet_runtime.engine.rank_process", description=__doc__)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--rendezvous", required=True)
    arguments = parser.parse_args()
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the whole group; the first rank ends this one
    worker = RankWorker(arguments.rank, Path(arguments.rendezvous), answers)
    threading.Thread(target=_listen, args=(sys.stdin.buffer, worker.inbox), daemon=True).start()
    try:
        worker.run()
    except Exception as error:
        answers.write(frame(Failed(f"{type(error).__name__}: {error}", traceback.format_exc())))
        answers.flush()
        os._exit(1)


if __name__ == "__main__":
    main()
