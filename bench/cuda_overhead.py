"""Sections of `bench.cuda`: how an engine starts, and what its steps cost without adapters and with them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cuda_engines import Engines, decoding, first_token, loaded, random_tokens, step_seconds
from bench.cuda_lines import Lines
from bench.cuda_setup import Files, Scale
from bench.kernels_cases import adapter_bytes, base_bytes, kv_bytes
from bench.kernels_timing import Clock
from bench.record import Result
from lorafleet_runtime.engine.engine import Engine

CAPTURE_GOAL = 20.0
BASE_GOAL, IDLE_LORA_GOAL = 1.25, 1.01
OVERHEADS = {("alike", 8): 0.06, ("distinct", 64): 0.27}
"""Goals by kind of batch and number of distinct adapters of rank 16, at `OVERHEAD_ROWS` rows."""
OVERHEAD_ROWS = 64
PREFILLS = 3
OFF, ON = "no adapters, LoRA off", "no adapters, LoRA on"


def starts(engines: Engines, lines: Lines) -> Iterator[Result]:
    """Twice: with kernels that have to be compiled, unless an earlier run left them, and with all of them there."""
    for case, memory in (("start, as it finds its kernels", engines.scale.memory), ("start, kernels compiled", 0)):
        engines.get(memory=memory, anew=True)
        start = engines.last_start
        assert start is not None, "it has just been started"
        yield lines.line(case, "until ready", start.seconds, "s")
        yield lines.line(case, "reading weights", start.load, "s")
        yield lines.line(case, "compiling kernels", start.compiling, "s")
        yield lines.line(case, "capturing graphs", start.capture, "s", most=CAPTURE_GOAL)
        yield lines.line(case, "memory of graphs", start.graphs / 2**20, "MiB")


@dataclass(frozen=True, slots=True)
class Batch:
    """A kind of decode batch: `name`, the files and the number of its adapters, their mean rank."""

    name: str
    files: Sequence[Path] = ()
    count: int = 0
    rank: float = 0.0


def batches(files: Files, scale: Scale) -> list[Batch]:
    mean = sum(scale.mixed) / len(scale.mixed)
    return [
        Batch(ON),
        Batch("alike", files.alike, scale.few, 16),
        Batch("distinct", files.alike, scale.distinct, 16),
        Batch("ranks mixed", files.mixed, len(scale.mixed), mean),
    ]


def decodes(engines: Engines, files: Files, lines: Lines, clock: Clock) -> Iterator[Result]:
    """Step seconds by rows, on two engines: one that has no LoRA, one with it. `lines.steps` keeps them."""
    scale = engines.scale
    engine = engines.get(max_rank=0, memory=scale.memory)
    yield from _steps(engine, Batch(OFF), [None], scale, lines, clock)
    engine = engines.get()
    for batch in batches(files, scale):
        with loaded(engine, batch.name.replace(" ", "-"), batch.files, batch.count) as names:
            yield from _steps(engine, batch, names or [None], scale, lines, clock)


def _steps(
    engine: Engine, batch: Batch, adapters: Sequence[str | None], scale: Scale, lines: Lines, clock: Clock
) -> Iterator[Result]:
    for rows in sorted(scale.batches, reverse=True):  # the prompts of fewer rows are in the prefix cache then
        if clock.over:
            print(f"decodes: the budget ended before {batch.name}, {rows} rows")
            return
        with decoding(engine, rows, scale.context, adapters, scale):
            lines.steps[batch.name, rows] = step_seconds(engine, rows, scale.timed)
        yield from told(batch, rows, scale, lines)


def told(batch: Batch, rows: int, scale: Scale, lines: Lines) -> Iterator[Result]:
    """One step over what it is to be compared with: the roofline, LoRA off, or the base model alone."""
    seconds = lines.steps[batch.name, rows]
    case = f"decode, {rows} rows of {scale.context}"
    if batch.name == OFF:
        bound = base_floor(rows, scale) / lines.bandwidth
        goal = BASE_GOAL if rows == 1 else None
        metric = f"{OFF}, over its bytes at copy bandwidth"
        yield lines.over(case, metric, 1e3 * seconds, 1e3 * bound, "ms", most=goal)
    elif batch.name == ON:
        off = lines.steps.get((OFF, rows))
        yield lines.over(case, f"{ON}, over off", 1e3 * seconds, 1e3 * off if off else None, "ms", most=IDLE_LORA_GOAL)
    else:
        base = lines.steps.get((ON, rows)) or lines.steps.get((OFF, rows))
        distinct = min(rows, batch.count)
        ideal = 1 + distinct * batch.rank * adapter_bytes(1, scale.config) / base_floor(rows, scale)
        metric = f"{batch.name}, {distinct} adapters of mean rank {batch.rank:.0f}, over none (by bytes {ideal:.3f})"
        goal = OVERHEADS.get((batch.name, distinct)) if rows == OVERHEAD_ROWS else None
        yield lines.over(
            case, metric, 1e3 * seconds, 1e3 * base if base else None, "ms", most=1 + goal if goal else None
        )


def base_floor(rows: int, scale: Scale) -> float:
    """Bytes of a decode step without adapters: weights, keys and values."""
    return base_bytes(scale.config) + scale.config.num_layers * kv_bytes(rows * scale.context, scale.config)


def prefills(engines: Engines, files: Files, lines: Lines, clock: Clock) -> Iterator[Result]:
    """A prompt alone, on the base model and on an adapter of rank 16: seconds to its first token."""
    scale, engine = engines.scale, engines.get()
    seed = 10**6
    with loaded(engine, "prefill", files.alike, 1) as [name]:
        for tokens in scale.prompts:
            found: dict[str | None, float] = {}
            for adapter in (None, name):
                if clock.over:
                    print(f"prefills: the budget ended before {tokens} tokens")
                    return
                times = []
                for _ in range(PREFILLS + 1):  # the first compiles what it needs
                    seed += 1
                    times.append(first_token(engine, random_tokens(tokens, scale, seed), adapter))
                found[adapter] = statistics.median(times[1:])
            case = f"prompt of {tokens}"
            yield lines.line(case, "prefill, base model", tokens / found[None], "tokens/s")
            yield lines.over(case, "first token on an adapter of rank 16, over base", 1e3 * found[name],
                             1e3 * found[None], "ms")  # fmt: skip
