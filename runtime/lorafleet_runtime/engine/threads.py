"""How many threads a step should use on this machine, now: measured on real decode steps of the loaded model.

A second thread speeds large products up, and beside a busy process each of them waits for a worker that lost its core.
A probe of one product in a loop does not show that; so whole steps are timed.
"""

from __future__ import annotations

import os
import time

from lorafleet_runtime.core.batch import Batch, Row
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.engine.runner import Runner
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.threads import set_threads
from lorafleet_runtime.model.threads import threads as current_threads
from lorafleet_runtime.protocol import Sampling

ROWS, CONTEXT, PAGES_EACH = 8, 64, 5
STEPS = 6
SECONDS_EACH = 2.0
"""A large model gets fewer steps: the choice must not hold up the start."""


def choose_threads(model: Decoder) -> int:
    """The thread count whose slower steps are fastest; fewer threads win within a tenth. Restores the current count."""
    before = current_threads()
    runner = Runner(model, ROWS * PAGES_EACH)
    batch = _decode_batch()
    best, best_seconds = 1, float("inf")
    for threads in candidates(available_cores()):
        set_threads(threads)
        seconds = _slow_step(runner, batch)
        if seconds < 0.9 * best_seconds:
            best, best_seconds = threads, seconds
    set_threads(before)
    return best


def available_cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def candidates(cores: int) -> list[int]:
    """Powers of two below the core count, and the core count."""
    return sorted({1, cores, *(2**i for i in range(1, 10) if 2**i < cores)})


def _decode_batch() -> Batch:
    tokens, sampling = [0] * (CONTEXT + 1), Sampling(max_tokens=1, temperature=0)
    pages = [list(range(PAGES_EACH * i, PAGES_EACH * (i + 1))) for i in range(ROWS)]
    sequences = [Sequence(str(i), tokens, CONTEXT, sampling, None, pages=pages[i]) for i in range(ROWS)]
    return Batch(tuple(Row(sequence, CONTEXT, 1, samples=True) for sequence in sequences))


def _slow_step(runner: Runner, batch: Batch) -> float:
    """Seconds of the second slowest step of a few: one stalled step is the machine's, two are the threads'."""
    plan = runner.plan(batch)
    runner.logits(plan)
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < STEPS and (len(times) < 2 or time.perf_counter() - begun < SECONDS_EACH):
        before = time.perf_counter()
        runner.logits(plan)
        times.append(time.perf_counter() - before)
    return sorted(times)[-2]
