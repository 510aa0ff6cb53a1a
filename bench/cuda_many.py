"""Sections of `bench.cuda`: throughput from five adapters to thousands, and a request on an adapter that is not in the
pool."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bench.adapters_scale_load import ClosedLoop, Turn, register
from bench.adapters_scale_steps import cold_and_warm
from bench.cuda_engines import HOST_SHARE, Engines
from bench.cuda_lines import Lines
from bench.cuda_setup import ATTENTION, Files
from bench.kernels_cases import base_bytes, kv_bytes
from bench.kernels_timing import Clock
from bench.record import Result
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.memory import available_bytes
from lorafleet_runtime.model.adapter import WEIGHTS_FILE
from lorafleet_runtime.protocol import UnloadAdapter

MOST_LOSS = 0.03
STEPS_MORE = 1.0
AT_ONCE = 100
"""Adapters that are registered between two looks at the clock."""
ROUNDS = 2
COLD_FOR_EACH_PROBE = 2


def many(engines: Engines, files: Files, lines: Lines, clock: Clock) -> Iterator[Result]:
    """Adapters of rank 8 on q, k, v and o. One closed loop on the first few and one on all, by Zipf's law, in turn."""
    scale, engine = engines.scale, engines.get()
    few, registered = scale.registered[0], 0
    size = files.small[0].joinpath(WEIGHTS_FILE).stat().st_size
    try:
        for count in scale.registered:
            if (count - registered) * size > HOST_SHARE * available_bytes():
                print(f"many: left out: {count} adapters: this machine's memory does not hold them")
                return
            while registered < count:
                if clock.over:
                    print(f"many: the budget ended at {registered} adapters")
                    return
                last = min(count, registered + AT_ONCE)
                register(engine, files.small, registered, last)
                registered = last
            pairs = []
            for number in range(ROUNDS):
                loops = [ClosedLoop(engine, size, "zipf", scale.loop, seed=number) for size in (few, count)]
                turns = [_turn(loop, scale.turn_seconds) for loop in (loops if number % 2 == 0 else loops[::-1])]
                pairs.append(turns if number % 2 == 0 else turns[::-1])
            yield from _told(engines, pairs, count, size, lines)
    finally:
        _unload(engine, registered)


def _turn(loop: ClosedLoop, seconds: float) -> Turn:
    """A stretch once all are under way."""
    loop.run(seconds / 4)
    turn = loop.run(seconds)
    loop.end()
    return turn


def _told(engines: Engines, pairs: list[list[Turn]], count: int, size: int, lines: Lines) -> Iterator[Result]:
    scale = engines.scale
    few, all_of_them = (statistics.median(pair[which].speed for pair in pairs) for which in (0, 1))
    lines.speeds[count] = few, all_of_them
    least = 1 - MOST_LOSS if count == max(scale.registered) else None
    case = f"{count} adapters of rank 8 on {len(ATTENTION)} projections, {scale.loop.flight} requests in flight"
    yield lines.over(case, "output, over traffic on few", all_of_them, few, "tokens/s", least=least, repeats=ROUNDS)
    distinct = [statistics.mean(n for pair in pairs for n in pair[which].distinct) for which in (0, 1)]
    yield lines.over(case, "distinct adapters in a batch", distinct[1], distinct[0], "", repeats=ROUNDS)
    length = scale.loop.prompt + sum(scale.loop.outputs) / 4  # half of a mean output is there, on average
    tokens = round(scale.loop.flight * length)
    rest = base_bytes(scale.config) + scale.config.num_layers * kv_bytes(tokens, scale.config)
    left = (rest + distinct[0] * size) / (rest + distinct[1] * size)
    yield lines.line(case, "what reading a batch's distinct adapters leaves of it, by bytes", left, "")
    ttft = [statistics.median(pair[which].ttft for pair in pairs) for which in (0, 1)]
    yield lines.over(case, "TTFT p50, over traffic on few", 1e3 * ttft[1], 1e3 * ttft[0], "ms", repeats=ROUNDS)


def cold(engines: Engines, files: Files, lines: Lines, clock: Clock) -> Iterator[Result]:
    """Adapters of rank 16 on all linear layers in host memory, one after the other wanted for the first time, beside
    others' decodes; each after a request on one that is in the pool."""
    scale, engine = engines.scale, engines.get()
    count = 8 + COLD_FOR_EACH_PROBE * scale.probes
    try:
        register(engine, files.alike, 0, count)
        if clock.over:
            print("cold: the budget ended while adapters were registered")
            return
        probes = cold_and_warm(engine, count, scale.loop, scale.probes)
    finally:
        _unload(engine, count)
    if not probes.cold:
        raise RuntimeError("no adapter was cold: the pool took them all before they were wanted")
    warm, first, step = (statistics.median(values) for values in (probes.warm, probes.cold, probes.decode))
    case = f"an adapter of rank 16 in host memory, {scale.loop.flight} requests in flight"
    repeats = len(probes.cold)
    yield lines.over(case, "TTFT p50, over one in the pool", 1e3 * first, 1e3 * warm, "ms", repeats=repeats)
    yield lines.line(case, "that is later by so many decode steps", (first - warm) / step, "steps", most=STEPS_MORE,
                     repeats=repeats)  # fmt: skip
    longest = max(probes.decode)
    yield lines.over(case, "longest step without a prompt, over the median one", 1e3 * longest, 1e3 * step, "ms",
                     repeats=len(probes.decode))  # fmt: skip


def _unload(engine: Engine, count: int) -> None:
    for number in range(count):
        engine.handle(UnloadAdapter(f"a{number}"))
    engine.step()
