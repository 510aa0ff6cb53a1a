"""One unified pool against fixed adapter slots and against separate pools, at equal bytes: the comparison that S-LoRA
did not make.

`python -m bench.paging [--quick] [--real]`: the production scheduler and allocator in virtual time, with step times
measured on the real engine just before, over S-LoRA's workload (5.2 of its notes: Gamma arrivals, lengths 8-512, ranks
8, 16, 32, 64 in turn, popularity by a power law; prompts are distinct, so that no prefix helps). Slots are of rank 64;
the baselines get the number of slots, or the share of the pool, with which they do best, and let others pass a request
whose adapter has no room. Goodput: the rate at which nine in ten first tokens come within six seconds. `--real` runs
the same pools under the real engine, SmolLM2-135M, all requests at once.

Gate: with `--real`, greedy output is the same under each pool. Also the allocator: a million calls."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np

from bench.paging_real import measured_timing, real_results
from bench.pools import RegionRoom, Skipping
from bench.record import Result, write
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.fairness.order import Fifo
from lorafleet_runtime.core.limits import Limits
from lorafleet_runtime.core.pages import PagePool
from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.scheduler import Scheduler
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.protocol import Sampling

PAGES, CONTEXT = 1456, 1024
"""1 GiB of pages of SmolLM2-135M in float32, as the quickstart has it."""
RANKS = {8: 14, 16: 27, 32: 53, 64: 106}
"""Pages of an adapter of that rank on all linear layers of SmolLM2-135M."""
SLOTS = (2, 4, 6, 8, 10, 12)
SHARES = (0.1, 0.2, 0.35, 0.5, 0.65)
ADAPTERS, SLO_SECONDS = 200, 6.0
Make = Callable[[], tuple[Room, FairQueue]]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a step: `base` + `row`·rows + `token`·prompt tokens + `page`·adapter pages copied."""

    base: float
    row: float
    token: float
    page: float

    def of(self, rows: int, prompt_tokens: int, pages: int) -> float:
        return self.base + self.row * rows + self.token * prompt_tokens + self.page * pages


@dataclass(frozen=True, slots=True)
class Request:
    at: float
    adapter: int
    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Requests a second: in time, finished, and offered."""

    goodput: float
    throughput: float
    offered: float


def workload(rate: float, adapters: int, alpha: float, seconds: float, seed: int) -> list[Request]:
    """S-LoRA's generator with cv 1: P(index < k) = (k/n)^alpha, uniform at alpha 1."""
    rng = np.random.default_rng(seed)
    count = int(rate * seconds)
    times = np.cumsum(rng.exponential(1 / rate, count))
    which = (rng.power(alpha, count) * adapters).astype(int)
    lengths = rng.integers(8, 513, (count, 2))
    return [Request(float(t), int(a), int(p), int(o)) for t, a, (p, o) in zip(times, which, lengths, strict=True)]


def run(make: Make, load: Rows[Request], timing: Timing, seconds: float) -> Outcome:
    """Serve for so many seconds of virtual time; what is unfinished then counts as far as it came."""
    room, queue = make()
    scheduler = Scheduler(room, Limits(CONTEXT, 64, 512), queue)
    known: dict[int, Adapter] = {}
    pages = list(RANKS.values())
    begun: dict[str, float] = {}
    now, arrived, good, done = 0.0, 0, 0, 0
    while now < seconds:
        while arrived < len(load) and load[arrived].at <= now:
            request = load[arrived]
            if request.adapter not in known:
                size = pages[request.adapter % len(pages)]
                known[request.adapter] = room.residency.register(f"a{request.adapter}", "r", 0, size, 0, (), False)[0]
            tokens = [arrived] * request.prompt
            sampling = Sampling(max_tokens=request.output)
            scheduler.add(
                Sequence(str(arrived), tokens, request.prompt, sampling, known[request.adapter], f"{arrived}")
            )
            begun[str(arrived)] = request.at
            arrived += 1
        batch = scheduler.schedule()
        if batch is None:
            if arrived == len(load):
                break
            now = load[arrived].at
            continue
        decodes = batch.decodes
        now += timing.of(len(batch.rows), batch.tokens - decodes, sum(a.pages_needed for a in batch.uploads))
        for sequence, _ in scheduler.commit(batch, [1] * sum(row.samples for row in batch.rows)):
            if sequence.output_len == 1:
                good += now - begun[sequence.request_id] <= SLO_SECONDS
            done += sequence.finish_reason is not None
    return Outcome(good / now, done / now, arrived / now)


def unified() -> tuple[Room, FairQueue]:
    return Room(PAGES, CONTEXT), FairQueue(Fifo())


def region(pages: int, slot: int) -> Make:
    def make() -> tuple[Room, FairQueue]:
        room = RegionRoom(PAGES, CONTEXT, pages, slot)
        return room, FairQueue(Skipping(lambda s: s.adapter is None or room.region.has_room(s.adapter)))

    return make


def capacity(make: Make, timing: Timing, alpha: float, seconds: float) -> float:
    """Goodput: the highest rate of which nine in ten requests get their first token in time, to a twentieth."""
    low, high = 0.0, 4.0
    while high - low > 0.05:
        rate = (low + high) / 2
        outcome = run(make, workload(rate, ADAPTERS, alpha, seconds, seed=42), timing, seconds)
        low, high = (rate, high) if outcome.goodput >= 0.9 * outcome.offered else (low, rate)
    return low


def simulated(timing: Timing, quick: bool) -> list[Result]:
    """Goodput of the three pools over popularity, each baseline at its best setting; and throughput under overload."""
    seconds = 60.0 if quick else 240.0
    baselines = {
        "fixed slots": {f"{n} slots": region(n * RANKS[64], RANKS[64]) for n in SLOTS},
        "separate pools": {f"{share:.0%} for adapters": region(int(share * PAGES), 0) for share in SHARES},
    }
    found: list[Result] = []
    for alpha, popularity in ((1.0, "uniform"), (0.3, "skewed (alpha 0.3)")):
        ours = capacity(unified, timing, alpha, seconds)
        overload = workload(2.5 * ours, ADAPTERS, alpha, seconds, seed=43)
        most = run(unified, overload, timing, seconds).throughput
        for kind, makes in baselines.items():
            goodputs = {name: capacity(make, timing, alpha, seconds) for name, make in makes.items()}
            name = max(goodputs, key=goodputs.__getitem__)
            ratio = ours / goodputs[name]
            goal = ">= 1.3" if kind == "fixed slots" else ">= 1"
            met = ratio >= (1.3 if kind == "fixed slots" else 1.0)
            case = f"{ADAPTERS} adapters r8-64, {popularity}; {kind} at best ({name})"
            found.append(Result("paging", case, "goodput", ours, "requests/s", goodputs[name], ratio, goal, met))
            theirs = {name: run(make, overload, timing, seconds).throughput for name, make in makes.items()}
            name = max(theirs, key=theirs.__getitem__)
            case = f"{ADAPTERS} adapters r8-64, {popularity}, overloaded; {kind} at best ({name})"
            found.append(Result("paging", case, "throughput", most, "requests/s", theirs[name], most / theirs[name]))
    return found


def allocator() -> Result:
    """A million allocations and releases of one to thirty pages, some of them runs."""
    pool, rng = PagePool(20_000), random.Random(1)
    held: list[list[int]] = []
    begun = time.perf_counter()
    for _ in range(1_000_000):
        count = rng.choice((1, 1, 1, 4, 12, 30))
        if pool.free > count and len(held) < 2000:
            held.append(pool.allocate_run(count) if count > 12 else pool.allocate(count))
        else:
            pool.release(held.pop(rng.randrange(len(held))))
    seconds = time.perf_counter() - begun
    return Result("paging", "allocator", "10^6 alloc/free", seconds, "s", goal="< 2 s", met=seconds < 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one rate, a minute of virtual time, nothing written")
    parser.add_argument("--real", action="store_true", help="under the real engine as well")
    arguments = parser.parse_args()
    timing = Timing(*measured_timing(arguments.quick))
    print(f"a step takes {timing}")
    results = [allocator(), *simulated(timing, arguments.quick)]
    if arguments.real:
        results += real_results(arguments.quick)
    write(results, quick=arguments.quick)


if __name__ == "__main__":
    main()
