"""What a cold adapter's request waits for, and how long steps take while adapters come."""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.adapters_scale_load import ClosedLoop, Shape, Step, Turn, load
from lorafleet_runtime.engine.engine import Engine

PROBE_TOKENS = 4
LOADED_MEANWHILE = 40
LEAST_OF_A_KIND = 10


@dataclass(slots=True)
class Probes:
    """Seconds to the first token on adapters in the pool and not in it, of the copy of a cold one's bytes, and of the
    steps without prompts."""

    warm: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


def cold_and_warm(engine: Engine, count: int, shape: Shape, pairs: int) -> Probes:
    """Beside a closed loop, one request on a resident adapter and one on a registered one that is not, in turn, of
    equal ranks; each waits for the end of the one before."""
    probes, turn = Probes(), Turn()
    # The loop draws from few adapters, so that no other request's upload falls into a probe's step.
    loop = ClosedLoop(engine, min(8, count), "uniform", shape, seed=5)
    rng = random.Random(6)
    for _ in range(shape.outputs[1]):
        loop.step(turn)
    for _ in range(pairs):
        rank = rng.choice(sorted({a.rank for a in engine.state().adapters}))
        for wanted, waits in ((True, probes.warm), (False, probes.cold)):
            known = [a for a in engine.state().adapters if a.rank == rank and a.resident is wanted]
            if not known:
                break
            chosen = rng.choice(known)
            waits.append(_first_token(loop, int(chosen.id[1:]), turn))
            if not wanted:
                probes.copies.append(_copy_seconds(chosen.bytes))
    probes.decode = [step.seconds for step in turn.steps if step.prompts == 0]
    loop.end()
    return probes


def _first_token(loop: ClosedLoop, adapter: int, turn: Turn) -> float:
    sent = time.perf_counter()
    request = loop.send(adapter, PROBE_TOKENS)
    first = 0.0
    while True:
        delta = loop.step(turn).get(request)
        if delta is not None and not first:
            first = time.perf_counter() - sent
        if delta is not None and delta.finish_reason:
            return first


def _copy_seconds(size: int) -> float:
    """Of so many bytes in memory, cold."""
    source = torch.ones(size, dtype=torch.uint8)
    target = torch.empty_like(source)
    torch.ones(2**26, dtype=torch.uint8).sum()
    begun = time.perf_counter()
    target.copy_(source)
    return time.perf_counter() - begun


@dataclass(frozen=True, slots=True)
class Longest:
    """The longest step over the median of its kind in the same stretch: with adapters being read and uploaded, and
    with all of them in the pool; and of how many steps the former."""

    loading: float
    quiet: float
    steps: int


def steps_while_loading(engine: Engine, files: Sequence[Path], count: int, shape: Shape, seconds: float) -> Longest:
    """A loop on adapters that stay in the pool; then one that draws from all, so that uploads happen in it, while new
    ones are read. A step's kind is the number of prompts in it; kinds seen fewer than ten times are left out."""
    loop = ClosedLoop(engine, min(24, count), "uniform", shape, seed=7)
    loop.run(seconds / 2)
    quiet = loop.run(seconds).steps
    loop.end()
    loop = ClosedLoop(engine, count, "uniform", shape, seed=8)
    loop.run(seconds / 4)
    for number in range(count, count + LOADED_MEANWHILE):
        load(engine, files, number)
    loading = loop.run(seconds).steps
    loop.end()
    return Longest(_worst(loading), _worst(quiet), len(loading))


def _worst(steps: Sequence[Step]) -> float:
    kinds: dict[int, list[float]] = defaultdict(list)
    for step in steps:
        kinds[step.prompts].append(step.seconds)
    known = [taken for taken in kinds.values() if len(taken) >= LEAST_OF_A_KIND]
    return max((max(taken) / statistics.median(taken) for taken in known), default=float("nan"))
