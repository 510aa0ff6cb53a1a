"""Of `bench.cuda`: one engine at a time over one model, what its start took, and requests that keep it decoding."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.cuda_setup import Scale
from lorafleet_kernels.dispatch import DEPENDENT_LAUNCHES
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.memory import available_bytes
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.protocol import AbortRequest, AddRequest, Delta, LoadAdapter, Sampling, UnloadAdapter

HOST_SHARE = 0.6
MAX_RANK = 64
SPANS = 3
"""Into which timed steps are cut: the median of them is told."""
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds in all, of reading the weights, of compiling kernels and of capturing graphs; bytes that the card has
    less of after these."""

    seconds: float
    load: float
    compiling: float
    capture: float
    graphs: int


class Engines:
    """`get` gives the engine with the asked settings: the present one, or another in its place."""

    def __init__(self, scale: Scale, model: Path, device: torch.device) -> None:
        self.scale = scale
        self.device = device
        self._model = model
        self._host = int(HOST_SHARE * available_bytes())
        self._present: tuple[EngineConfig, Engine] | None = None
        self.last_start: Start | None = None

    def get(self, *, max_rank: int = MAX_RANK, memory: int = 0, anew: bool = False) -> Engine:
        """`memory` 0: what the scale says, which may be all that the card has."""
        scale = self.scale
        memory = memory or (0 if scale.whole_card else scale.memory)
        config = EngineConfig(
            str(self._model), "base", dtype=scale.dtype, device=self.device.type, max_model_len=scale.max_model_len,
            max_num_seqs=scale.rows, max_batched_tokens=scale.max_batched_tokens, max_lora_rank=max_rank,
            memory_bytes=memory, threads=0 if self.device.type == "cuda" else 1, host_memory_bytes=self._host,
        )  # fmt: skip  # not checked: tiny pools are smaller than any that are served with
        if self._present is not None and not anew and self._present[0] == config:
            return self._present[1]
        self.drop()
        engine, self.last_start = _started(config)
        self._present = (config, engine)
        return engine

    def drop(self) -> None:
        """Close the engine, if there is one, and give back what it had."""
        present, self._present = self._present, None
        if present is not None:
            with contextlib.suppress(Exception):  # the device may have failed
                present[1].close()
        del present
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _started(config: EngineConfig) -> tuple[Engine, Start]:
    moments: dict[str, tuple[float, int]] = {}

    def note(message: str, fraction: float) -> None:
        if message not in moments:
            moments[message] = time.perf_counter(), _used()

    begun = time.perf_counter()
    engine = start(config, note)
    end = time.perf_counter(), _used()
    read, loaded = (moments[message][0] for message in ("loading weights", "measuring what is fastest on this machine"))
    captures = moments.get("capturing decode steps", end)
    compiles = moments.get("compiling kernels", captures)
    return engine, Start(
        end[0] - begun, loaded - read, captures[0] - compiles[0], end[0] - captures[0], max(0, end[1] - captures[1])
    )


def _used() -> int:
    """Bytes of the card that are taken, by whomever."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free


@contextlib.contextmanager
def kernels(name: str) -> Iterator[None]:
    """Engines that are started inside compute with these; only Triton's launch dependents."""
    before = {key: os.environ.pop(key, None) for key in ("LORAFLEET_KERNELS", DEPENDENT_LAUNCHES)}
    inside = before | {"LORAFLEET_KERNELS": name}
    if name != "triton":
        inside[DEPENDENT_LAUNCHES] = None
    os.environ.update({key: value for key, value in inside.items() if value is not None})
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


@contextlib.contextmanager
def loaded(engine: Engine, prefix: str, files: Sequence[Path], count: int) -> Iterator[list[str]]:
    """So many adapters from these files in turn, while the block runs. Raises RuntimeError for one that is refused."""
    names = [f"{prefix}{number}" for number in range(count)]
    for number, name in enumerate(names):
        engine.handle(LoadAdapter(name, f"sha256:{name}", str(files[number % len(files)])))
    while any(a.state == "Loading" for a in engine.state().adapters):
        engine.step()
        time.sleep(0.002)
    if refused := [a.message for a in engine.state().adapters if a.state == "Failed"]:
        raise RuntimeError(f"an adapter was refused: {refused[0]}")
    try:
        yield names
    finally:
        for name in names:
            engine.handle(UnloadAdapter(name))
        engine.step()


@contextlib.contextmanager
def decoding(engine: Engine, rows: int, context: int, adapters: Sequence[str | None], scale: Scale) -> Iterator[None]:
    """So many requests, all of which have had their prompts of `context` tokens computed. Row i has the same prompt
    every time, so that the prefix cache has it the second time on the same adapter."""
    names = [f"d{next(_numbers)}" for _ in range(rows)]
    sampling = Sampling(max_tokens=scale.max_model_len - context, temperature=0)
    for row, name in enumerate(names):
        prompt = random_tokens(context, scale, seed=row)
        engine.handle(AddRequest(name, prompt, sampling, adapters[row % len(adapters)]))
    begun: set[str] = set()
    while len(begun) < rows:
        begun.update(d.request_id for d in checked(engine.step()))
    try:
        yield
    finally:
        for name in names:
            engine.handle(AbortRequest(name))
        while engine.has_work:
            engine.step()


def step_seconds(engine: Engine, rows: int, steps: int) -> float:
    """Of one of the next steps, in which all rows decode: the median of a few spans of them."""
    engine.step()
    spans = []
    for _ in range(SPANS):
        each = max(1, steps // SPANS)
        begun = time.perf_counter()
        for _ in range(each):
            if len(checked(engine.step())) != rows:
                raise RuntimeError(f"a step did not have the {rows} rows that were to decode")
        spans.append((time.perf_counter() - begun) / each)
    return statistics.median(spans)


def first_token(engine: Engine, prompt: list[int], adapter: str | None) -> float:
    """Seconds until a request that is alone has its only token."""
    name = f"f{next(_numbers)}"
    begun = time.perf_counter()
    engine.handle(AddRequest(name, prompt, Sampling(max_tokens=1, temperature=0), adapter))
    while not any(d.request_id == name for d in checked(engine.step())):
        pass
    return time.perf_counter() - begun


def random_tokens(count: int, scale: Scale, seed: int) -> list[int]:
    return random.Random(seed).choices(range(10, min(49000, scale.config.vocab_size)), k=count)


def checked(deltas: list[Delta]) -> list[Delta]:
    """Raises RuntimeError for a request that failed."""
    if failed := [d.error for d in deltas if d.error]:
        raise RuntimeError(f"a request failed: {failed[0]}")
    return deltas
