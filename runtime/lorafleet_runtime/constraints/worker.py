"""The process that knows constraints, a child of the engine: `python -m lorafleet_runtime.constraints.worker PROGRESS`.

Frames on standard input and output, and the descriptor of its progress; it ends when the input does. One thread makes
masks; another compiles, so that running requests do not wait for a new one's constraint."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
import warnings
from collections import OrderedDict
from typing import IO

from llguidance import LLMatcher

from lorafleet_runtime.constraints.constraint import Constraint, Vocabulary
from lorafleet_runtime.constraints.language import Language, Unfit, advance, run_ahead
from lorafleet_runtime.constraints.messages import (
    Advance,
    Close,
    FromWorker,
    Made,
    Mask,
    Open,
    Opened,
    decode_to_worker,
)
from lorafleet_runtime.constraints.progress import Progress
from lorafleet_runtime.constraints.trial import bound_memory, refusal
from lorafleet_runtime.frames import frame, read_frame

KEPT = 64
"""Compiled constraints that are kept for the next request with the same one."""

LOWER_BY = 10
"""Nice levels: a step's threads stay awake and wait for each other, so that one core taken from them stops them all.
While the engine waits for masks, its cores are free."""
MEMORY_BYTES = 2 * 2**30
"""For matchers: beyond it this process dies, rather than the machine's others."""


class Worker:
    """Matchers by request. `run` reads until the input ends."""

    def __init__(self, source: IO[bytes], sink: IO[bytes], progress: Progress) -> None:
        self._source = source
        self._sink = sink
        self._sending = threading.Lock()
        self._quiet = threading.Lock()
        self._language: Language | None = None
        self._matchers: dict[str, LLMatcher] = {}
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._orders: queue.SimpleQueue[Open] = queue.SimpleQueue()
        self._progress = progress
        self._asked = 0  # masks, so far

    def run(self) -> None:
        threading.Thread(target=self._compile_orders, daemon=True).start()
        while (body := read_frame(self._source)) is not None:
            match decode_to_worker(body):
                case Vocabulary() as vocabulary:
                    self._language = Language(vocabulary)
                    _step_aside()
                    bound_memory(MEMORY_BYTES)
                case Open() as order:
                    self._orders.put(order)
                case Advance(tokens):
                    self._send(Made([self._advance(request_id, new) for request_id, new in tokens]))
                    self._progress.making = 0
                case Close(request_ids):
                    for request_id in request_ids:
                        self._matchers.pop(request_id, None)

    def _advance(self, request_id: str, tokens: list[int]) -> Mask:
        self._asked += 1
        self._progress.making = self._asked
        run: list[int] = []
        with self._quiet:
            try:
                matcher = self._matchers[request_id]
                advance(matcher, tokens)
                return Mask(request_id, run, self._ahead(matcher, run))
            except Unfit as error:
                return Mask(request_id, run, error=f"{error}")

    def _compile_orders(self) -> None:
        while True:
            self._send(self._open(self._orders.get()))

    def _open(self, order: Open) -> Opened:
        begun = time.perf_counter()
        try:
            known = order.constraint in self._compiled
            matcher = self._prototype(order).deep_copy()
            seconds = 0.0 if known else time.perf_counter() - begun
            try:
                advance(matcher, order.output_token_ids)
            except Unfit as error:
                raise Unfit(f"the tokens generated so far do not fit: {error}") from None
            run: list[int] = []
            bits = self._ahead(matcher, run)
        except Unfit as error:
            return Opened(order.request_id, error=f"{error}")
        self._matchers[order.request_id] = matcher
        return Opened(order.request_id, run, bits, seconds=seconds)

    def _ahead(self, matcher: LLMatcher, run: list[int]) -> bytes:
        assert self._language is not None, "the vocabulary comes first"
        return run_ahead(matcher, self._language.ends, run)

    def _prototype(self, order: Open) -> LLMatcher:
        assert self._language is not None, "the vocabulary comes first"
        found = self._compiled.get(order.constraint)
        if found is None:
            reason = "" if order.trusted else refusal(self._language, order.constraint, self._quiet)
            if reason:
                raise Unfit(reason)
            found = self._compiled[order.constraint] = self._language.compile(order.constraint)
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(order.constraint)
        return found

    def _send(self, message: FromWorker) -> None:
        with self._sending:
            self._sink.write(frame(message))
            self._sink.flush()


def _step_aside() -> None:
    """From now on; until it is ready, which takes a quarter of a second, somebody waits for it."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError):  # a sandbox that forbids it
        for thread in threading.enumerate():
            os.setpriority(os.PRIO_PROCESS, thread.native_id or 0, LOWER_BY)


def main() -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of forks beside threads: see trial
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    with contextlib.suppress(BrokenPipeError):
        Worker(sys.stdin.buffer, sink, Progress(int(sys.argv[1]))).run()
    os._exit(0)


if __name__ == "__main__":
    main()
