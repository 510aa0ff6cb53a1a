"""Closed loops on an in-process engine: so many requests in flight, each on an adapter drawn anew."""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil

from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.protocol import AbortRequest, AddRequest, Delta, LoadAdapter, Sampling

Popularity = Literal["uniform", "zipf"]
PROMPT = 128
SPARE_BYTES = 2**30
LOAD_SECONDS = 600.0


def register(engine: Engine, files: Sequence[Path], first: int, last: int) -> float:
    """Load adapters `first` to `last` - 1, each a revision of its own, from `files` in turn. Returns the seconds.

    Exits when one is refused, when memory runs out or when it takes more than ten minutes."""
    begun = time.perf_counter()
    for number in range(first, last):
        load(engine, files, number)
    while True:
        engine.step()
        states = [a.state for a in engine.state().adapters]
        if states.count("Ready") == last:
            return time.perf_counter() - begun
        if "Failed" in states:
            sys.exit(f"refused: {next(a.message for a in engine.state().adapters if a.state == 'Failed')}")
        known = f"{states.count('Ready')} of {last} adapters are registered"
        if psutil.virtual_memory().available < SPARE_BYTES:
            sys.exit(f"{known} and memory is used up: fewer --counts, or --targets attention")
        if time.perf_counter() - begun > LOAD_SECONDS:
            sys.exit(f"{known} after {LOAD_SECONDS:.0f} s")
        time.sleep(0.1)


def load(engine: Engine, files: Sequence[Path], number: int) -> None:
    """Have one adapter read; returns at once."""
    engine.handle(LoadAdapter(f"a{number}", f"sha256:{number}", str(files[number % len(files)])))


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a closed loop: requests in flight, the bounds between which output lengths are drawn, tokens of a prompt, and
    the end of the ids that these are drawn from."""

    flight: int = 32
    outputs: tuple[int, int] = (16, 112)
    prompt: int = PROMPT
    vocabulary: int = 49000


@dataclass(frozen=True, slots=True)
class Step:
    """One step's seconds, how many requests got their first token in it and how many a token in all."""

    seconds: float
    prompts: int
    rows: int


@dataclass(slots=True)
class Turn:
    """What a stretch of a loop gave."""

    seconds: float = 0.0
    tokens: int = 0
    ttfts: list[float] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    distinct: list[int] = field(default_factory=list)  # adapters in a step's batch

    @property
    def speed(self) -> float:
        return self.tokens / self.seconds

    @property
    def ttft(self) -> float:
        return statistics.median(self.ttfts)


class ClosedLoop:
    """Requests on `count` adapters; a finished one is followed by the next at once."""

    _number = itertools.count()

    def __init__(self, engine: Engine, count: int, popularity: Popularity, shape: Shape, seed: int = 0) -> None:
        self.engine = engine
        self._shape = shape
        self._rng = random.Random(seed)
        weights = [1.0 if popularity == "uniform" else 1.0 / (1 + i) for i in range(count)]
        self._sums = list(itertools.accumulate(weights))
        self._sent: dict[str, float] = {}
        self._adapter: dict[str, int] = {}
        self._begun: set[str] = set()

    def run(self, seconds: float) -> Turn:
        """Go on for `seconds`; requests are left in flight at the end, and found there by the next turn."""
        turn = Turn()
        begun = time.perf_counter()
        end = begun + seconds
        # Who was sent as the last turn ended has not waited while others ran.
        self._sent |= {request: begun for request in self._sent if request not in self._begun}
        self._fill()
        while (now := time.perf_counter()) < end:
            self._step(turn)
            self._fill()
            turn.seconds += time.perf_counter() - now
        return turn

    def send(self, adapter: int, tokens: int) -> str:
        """One request of `Shape.prompt` random tokens; returns its id."""
        request = f"r{next(self._number)}"
        prompt = [self._rng.randrange(10, self._shape.vocabulary) for _ in range(self._shape.prompt)]
        sampling = Sampling(max_tokens=tokens, temperature=0)
        self._sent[request], self._adapter[request] = time.perf_counter(), adapter
        self.engine.handle(AddRequest(request, prompt, sampling, f"a{adapter}"))
        return request

    def step(self, turn: Turn) -> dict[str, Delta]:
        """One step and whoever follows the finished; the deltas by request."""
        deltas = self._step(turn)
        self._fill()
        return {delta.request_id: delta for delta in deltas}

    def end(self) -> None:
        """Abort what is in flight."""
        for request in self._sent:
            self.engine.handle(AbortRequest(request))
        self.engine.step()
        self._sent.clear()
        self._adapter.clear()
        self._begun.clear()

    def _fill(self) -> None:
        while len(self._sent) < self._shape.flight:
            [adapter] = self._rng.choices(range(len(self._sums)), cum_weights=self._sums)
            self.send(adapter, self._rng.randint(*self._shape.outputs))

    def _step(self, turn: Turn) -> list[Delta]:
        before = time.perf_counter()
        deltas = self.engine.step()
        now = time.perf_counter()
        new = [d for d in deltas if d.request_id not in self._begun]
        for delta in deltas:
            if delta.error:
                sys.exit(f"a request failed: {delta.error}")
        turn.tokens += sum(len(d.token_ids) for d in deltas)
        turn.ttfts += [now - self._sent[d.request_id] for d in new]
        turn.steps.append(Step(now - before, len(new), len(deltas)))
        turn.distinct.append(len({self._adapter[d.request_id] for d in deltas}))
        self._begun.update(d.request_id for d in new)
        for delta in deltas:
            if delta.finish_reason:
                del self._sent[delta.request_id], self._adapter[delta.request_id]
                self._begun.remove(delta.request_id)
        return deltas
