"""Sections of `bench.cuda`: what a card holds, whether it holds when it is full, and how long it waits for the host."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from bench.cuda_engines import Engines, checked, decoding, loaded, random_tokens
from bench.cuda_lines import Lines
from bench.cuda_setup import Files
from bench.kernels_timing import Clock
from bench.record import Result
from lorafleet_runtime.core.pages import PAGE_TOKENS, pages_for_tokens
from lorafleet_runtime.protocol import AbortRequest, AddRequest, Sampling

FULL_STEPS = 8
"""Once no page is free, with as many rows as there are."""
GIB = 2**30


def capacity(engines: Engines, files: Files, lines: Lines, clock: Clock) -> Iterator[Result]:
    """The longest prompts in the largest batch, on adapters, until the pool is full and has to make room."""
    scale, engine = engines.scale, engines.get()
    with loaded(engine, "full", files.alike, scale.few) as names:
        state = engine.state()
        assert state.pages is not None, "a started engine has a pool"
        pages = state.pages
        adapter = next(a.pages for a in state.adapters if a.id == names[0])
        yield lines.line("capacity", "pool", pages.total * pages.bytes / GIB, "GiB")
        yield lines.line("capacity", "tokens of KV, without adapters", pages.total * PAGE_TOKENS, "tokens")
        yield lines.line("capacity", "adapters of rank 16, without KV", pages.total // adapter, "adapters")
        left, rows, seconds = _filled(engines, names, clock)
    case = f"filled by prompts of {_longest(engines)}, {rows} of {scale.rows} running"
    next_one = pages_for_tokens(engines.scale.max_model_len)
    yield lines.line(case, "pages left free, where the next one does not fit", left, "pages", most=next_one)
    yield lines.line(case, "until full", seconds, "s")
    if engines.device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        yield lines.line(case, "of the card's memory left free", free / total, "")
        beside = torch.cuda.max_memory_allocated() - pages.total * pages.bytes
        yield lines.line(case, "most that torch held beside the pool, weights and all", beside / GIB, "GiB")


def _longest(engines: Engines) -> int:
    return engines.scale.max_model_len - 2 * FULL_STEPS


def _filled(engines: Engines, adapters: Sequence[str], clock: Clock) -> tuple[int, int, float]:
    """Pages that were free at the least, the most rows that ran, and the seconds that it took; with all rows for a few
    steps after that. Ends with the clock where the pool is too large for it."""
    scale, engine = engines.scale, engines.get()
    names = [f"full-{number}" for number in range(2 * scale.rows)]
    begun = time.perf_counter()
    for number, name in enumerate(names):
        prompt = random_tokens(_longest(engines), scale, seed=2 * 10**6 + number)
        sampling = Sampling(max_tokens=2 * FULL_STEPS, temperature=0)
        engine.handle(AddRequest(name, prompt, sampling, adapters[number % len(adapters)]))
    least, rows, after, full_at = 2**31, 0, 0, 0.0
    while engine.has_work and after < FULL_STEPS:
        checked(engine.step())
        state = engine.state(adapters=False)
        assert state.pages is not None and state.load is not None, "a started engine has both"
        least, rows = min(least, state.pages.free), max(rows, state.load.running)
        full = least < pages_for_tokens(scale.max_model_len) and state.load.waiting > 0
        full_at = full_at or (time.perf_counter() - begun if full else 0.0)
        after += bool(full_at)
        if clock.over:
            print(f"capacity: the budget ended with {least} pages free")
            break
    for name in names:
        engine.handle(AbortRequest(name))
    while engine.has_work:
        engine.step()
    return least, rows, full_at or time.perf_counter() - begun


def idle(engines: Engines, files: Files, lines: Lines, clock: Clock) -> Iterator[Result]:
    """Of decode steps, the share of time in which the device does nothing, as a profiler sees it; in tiny form without
    a card, in which no operation runs."""
    scale, engine = engines.scale, engines.get()
    rows = min(64, scale.rows)
    activity = ProfilerActivity.CUDA if engines.device.type == "cuda" else ProfilerActivity.CPU
    with loaded(engine, "idle", files.alike, scale.few) as names:
        for kind, adapters in (("no adapters", [None]), (f"{scale.few} adapters of rank 16", names)):
            if clock.over:
                print(f"idle: the budget ended before {kind}")
                return
            with decoding(engine, rows, scale.context, adapters, scale):
                engine.step()
                with profile(activities=[activity]) as seen:
                    begun = time.perf_counter()
                    for _ in range(scale.timed):
                        checked(engine.step())
                    seconds = time.perf_counter() - begun
            events = [e for e in seen.events() if _on(e.device_type, engines.device)]
            spans = [(e.time_range.start, e.time_range.end) for e in events]
            case = f"device idle, {rows} rows of {scale.context}, {kind}"
            yield lines.line(case, "share of time, under a profiler", max(0.0, 1 - covered(spans) / 1e6 / seconds), "")
            yield lines.line(case, "decode step, under a profiler", 1e3 * seconds / scale.timed, "ms")


def _on(kind: object, device: torch.device) -> bool:
    return str(kind).lower().endswith(device.type)


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for begin, stop in sorted(spans):
        total += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return total
