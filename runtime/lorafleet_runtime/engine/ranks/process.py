"""A rank other than the first, as a process: it repeats on its part what the first rank tells it.

`python -m lorafleet_runtime.engine.ranks.process --rank I --rendezvous FILE`, started by `engine.ranks`.
Frames come on standard input and answers go to standard output; it ends when standard input does."""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import BinaryIO

import torch

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.adapters.disk_tier import DiskTier
from lorafleet_runtime.engine.adapters.loader import AdapterReader
from lorafleet_runtime.engine.load import load_rank
from lorafleet_runtime.engine.memory import give_back, keep_freed
from lorafleet_runtime.engine.ranks.adapters import Fetched, RankAdapters, Read
from lorafleet_runtime.engine.ranks.group import RankGroup
from lorafleet_runtime.engine.ranks.messages import (
    Begin,
    Failed,
    FromRank,
    Load,
    Loaded,
    ToRank,
    decode_to_rank,
)
from lorafleet_runtime.engine.runner import Runner, page_elements
from lorafleet_runtime.engine.step_plan import RunStep
from lorafleet_runtime.frames import frame, read_frame
from lorafleet_runtime.model.calibration import choose_forms
from lorafleet_runtime.model.checkpoint import read_config
from lorafleet_runtime.model.checkpoint_weights import CheckpointWeights
from lorafleet_runtime.model.on_demand import take
from lorafleet_runtime.model.parallel import Shard
from lorafleet_runtime.model.threads import set_threads


class RankWorker:
    """One loop runs everything but the reading of files. `inbox` has the first rank's messages, in order."""

    def __init__(self, rank: int, rendezvous: Path, answers: BinaryIO) -> None:
        self.inbox: queue.SimpleQueue[ToRank | Read | Fetched] = queue.SimpleQueue()
        self._rank = rank
        self._rendezvous = rendezvous
        self._answers = answers

    def run(self) -> None:
        """Load, meet the others, then do what is told until the process ends."""
        torch.set_grad_enabled(False)
        keep_freed()
        load = self.inbox.get()
        assert isinstance(load, Load), load
        config = EngineConfig.from_json(load.config)
        shard = Shard(self._rank, config.tensor_parallel)
        decoder = read_config(Path(config.model))
        set_threads(config.threads)
        model = load_rank(config, decoder, shard, lambda fraction: None)
        choose_forms(model)
        give_back()
        self.answer(Loaded())
        begin = self.inbox.get()
        assert isinstance(begin, Begin), begin
        model.collectives = RankGroup(self._rendezvous, shard.rank, shard.ranks, model.embedding.device)
        runner = Runner(model, begin.total_pages, config.partition)
        if config.memory_bytes:
            take(runner.pool)
        elements = page_elements(model.config.kv_dim, model.dtype, model.dtype)
        base = CheckpointWeights(Path(config.model), decoder, model.dtype)
        reader = AdapterReader(decoder, elements, model.dtype, config.max_lora_rank, shard, config.partition, base)
        adapters = RankAdapters(runner, reader, DiskTier(config.disk), self.inbox.put, self.answer)
        while True:
            match self.inbox.get():
                case RunStep() as step:
                    runner.logits(runner.plan_again(step))
                case Load() | Begin():
                    raise AssertionError("the first rank began twice")
                case message:
                    adapters.handle(message)

    def answer(self, message: FromRank) -> None:
        self._answers.write(frame(message))
        self._answers.flush()


def _listen(pipe: BinaryIO, inbox: queue.SimpleQueue[ToRank | Read | Fetched]) -> None:
    """The first rank holds the other end alone: when it ends, so does this process, whatever it is doing."""
    while (raw := read_frame(pipe)) is not None:
        inbox.put(decode_to_rank(raw))
    os._exit(0)


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="lorafleet_runtime.engine.ranks.process", description=__doc__)
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
