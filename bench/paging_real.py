"""`bench.paging` on the real engine: step times for the simulation, and the three pools under SmolLM2-135M."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.in_process import load_adapters, make_load, model_path, serve
from bench.pools import RegionRoom
from bench.record import Result
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.model.config import LORA_TARGETS
from lorafleet_runtime.model.threads import threads
from lorafleet_runtime.model.tiny import random_adapter, save_adapter
from lorafleet_runtime.protocol import AddRequest, Sampling

RANKS, ADAPTERS, REQUESTS = (8, 16, 32, 64), 32, 64
PAGES = 800
"""Pages of the pool: room for 16 adapters of the mean size, and nothing else."""
Make = Callable[..., Room]


def slots(count: int, slot: int) -> Make:
    """Fixed slots of `slot` pages beside KV."""
    return lambda pages, length, prefix_caching: RegionRoom(pages, length, count * slot, slot)


def share(part: float) -> Make:
    """A part of the pool for adapters, rank-exact, beside KV."""
    return lambda pages, length, prefix_caching: RegionRoom(pages, length, int(part * pages), 0)


def engine_with(make_room: Make, memory: int) -> Engine:
    config = EngineConfig(
        str(model_path()), "smollm2", max_model_len=512, max_num_seqs=64, max_batched_tokens=512, memory_bytes=memory,
        overlap="off",
    )  # fmt: skip
    return start(config, lambda message, fraction: None, make_room=make_room)


def adapters_of(engine: Engine, folder: Path, count: int) -> list[str]:
    folders = []
    for index in range(count):
        rank = RANKS[index % len(RANKS)]
        weights = random_adapter(engine.decoder_config, rank, LORA_TARGETS, index, alpha=rank, strength=0.02)
        folders.append(save_adapter(folder / f"a{index}", weights))
    load_adapters(engine, folders)
    return [f.name for f in folders]


def page_bytes(engine: Engine) -> int:
    pages = engine.state().pages
    assert pages is not None
    return pages.bytes


def measured_timing(quick: bool) -> tuple[float, float, float, float]:
    """Seconds of a step at no row, of a row, of a prompt token, of an adapter page copied: on this machine, now, with
    an adapter for every row."""
    with tempfile.TemporaryDirectory() as folder:
        engine = engine_with(Room, 2**30)
        names = adapters_of(engine, Path(folder), 8)
        steps = {rows: statistics.median(_decode_steps(engine, names, rows, 10 if quick else 30)) for rows in (4, 32)}
        row = max(0.0, (steps[32] - steps[4]) / 28)
        base = steps[4] - 4 * row
        token = (statistics.median(_prompt_steps(engine, names, 3 if quick else 8)) - base - row) / 448
        pages = [a.pages for a in engine.state().adapters]
        copy = _copy_seconds(engine) / (sum(pages) / len(pages))
        engine.close()
    return base, row, token, copy


def _decode_steps(engine: Engine, names: Sequence[str], rows: int, count: int) -> list[float]:
    for index in range(rows):
        sampling = Sampling(max_tokens=count + 4, temperature=0)
        engine.handle(AddRequest(str(index), [index + 5] * 100, sampling, names[index % len(names)]))
    times = []
    while engine.has_work:
        begun = time.perf_counter()
        if len(engine.step()) == rows:
            times.append(time.perf_counter() - begun)
    return times[2:]


def _prompt_steps(engine: Engine, names: Sequence[str], count: int) -> list[float]:
    times = []
    for index in range(count):
        sampling = Sampling(max_tokens=1, temperature=0)
        engine.handle(AddRequest(f"p{index}", [1000 + index] * 448, sampling, names[index % len(names)]))
        begun = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - begun)
    return times


def _copy_seconds(engine: Engine) -> float:
    """Of one adapter's pages, on average: the engine's own upload, outside a step."""
    runner = engine._runner
    resident = [a for a in engine._room.residency.all() if a.resident]
    begun = time.perf_counter()
    for adapter in resident:
        runner.upload(adapter.handle, adapter.pages, runner._packed[adapter.handle])
    return (time.perf_counter() - begun) / len(resident)


def real_results(quick: bool) -> list[Result]:
    """All requests at once, an adapter in turn for each: output tokens a second under each pool of equal bytes."""
    load = make_load("paging", 24 if quick else REQUESTS, (96, 160), (16, 24) if quick else (48, 80))
    probe = engine_with(Room, 2**30)
    memory, dtype = PAGES * page_bytes(probe), probe.state().model
    probe.close()
    slot = 106
    makes: dict[str, Make] = {"unified": Room}
    makes |= {f"{n} slots": slots(n, slot) for n in (3, 4, 5)}
    makes |= {f"{p:.0%} for adapters": share(p) for p in (0.4, 0.55, 0.7)}
    speed: dict[str, float] = {}
    outputs: dict[str, dict[int, list[int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in makes.items():
            engine = engine_with(make, memory)
            names = adapters_of(engine, Path(folder) / name.replace(" ", "-"), ADAPTERS)
            serve(engine, make_load("warm", 4, (16, 16), (2, 2)), names)
            done = serve(engine, load, names)
            speed[name], outputs[name] = load.output_tokens / done.seconds, done.outputs
            engine.close()
    agree(outputs)
    case = f"{len(load.prompts)} requests over {ADAPTERS} adapters r8-64, {PAGES} pages, SmolLM2, {threads()} thread(s)"
    assert dtype is not None
    found = []
    for kind, mark in (("fixed slots", "slots"), ("separate pools", "for adapters")):
        best = max((n for n in speed if mark in n), key=speed.__getitem__)
        ratio = speed["unified"] / speed[best]
        found.append(
            Result("paging", f"{case}, {dtype.dtype}; {kind} at best ({best})", "output speed", speed["unified"],
                   "tokens/s", speed[best], ratio)
        )  # fmt: skip
    return found


def agree(outputs: dict[str, dict[int, list[int]]]) -> None:
    """Gate: a pool decides when a token comes, not which. Other batches round differently, so in bfloat16 sequences may
    part at close calls: nine in ten first tokens must be equal."""
    reference = outputs["unified"]
    for name, theirs in outputs.items():
        equal = sum(reference[i][0] == theirs[i][0] for i in reference)
        if equal < 0.9 * len(reference):
            raise SystemExit(f"gate: under {name} only {equal} of {len(reference)} requests begin alike")
