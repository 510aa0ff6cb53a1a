"""The runtime against transformers + PEFT, against itself without adapters, and against the machine's own limit.

`python -m bench.runtime [--quick] [--steps] [--threads N] [--rounds N]`: SmolLM2-135M in float32, 32 requests over 8
adapters of rank 16 on all linear layers, distinct random prompts, greedy. Three loads: all requests alike (64 tokens
in, 64 out), which flatters whoever batches by padding; lengths as traffic has them (16 to 112, both ways, means near
64); and the proportion of chats, one to two (ShareGPT: 161 in, 338 out on average, vLLM paper 6.2). PEFT runs with the
thread count with which it is fastest here.

Gate: greedy output of a mixed batch equals PEFT's, token by token.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from bench.engine_adapters import make_adapters
from bench.in_process import Load, Run, gate, load_adapters, make_load, model_path, serve, start_engine
from bench.oracle import Oracle
from bench.record import Result, write
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.memory import give_back
from lorafleet_runtime.engine.threads import available_cores, candidates
from lorafleet_runtime.model.threads import threads as current_threads

ADAPTERS, REQUESTS, RANK = 8, 32, 16
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
def peft_seconds(oracle: Oracle, folders: Sequence[Path], load: Load, threads: int) -> float:
    """transformers + PEFT as a server would use them: swap to each adapter in turn, batch its requests, padded to the
    longest prompt and run to the longest output. Only the tokens that were asked for count, as for us."""
    torch.set_num_threads(threads)
    begun = time.perf_counter()
    for index, folder in enumerate(folders):
        prompts, length = load.prompts[index :: len(folders)], max(load.lengths[index :: len(folders)])
        width = max(map(len, prompts))
        oracle.adapted(folder).generate(
            input_ids=torch.tensor([[2] * (width - len(p)) + p for p in prompts]),
            attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
            pad_token_id=2,
        )
    seconds = time.perf_counter() - begun
    torch.set_num_threads(1)  # as the engine expects between its large operations
    return seconds


def best_peft_threads(oracle: Oracle, folders: Sequence[Path]) -> int:
    """PEFT gets the thread count with which it is fastest here, which need not be ours."""
    load = make_load("probe", REQUESTS, (16, 16), (6, 6))
    peft_seconds(oracle, folders[:1], load, 1)
    return min(candidates(available_cores()), key=lambda threads: peft_seconds(oracle, folders[:4], load, threads))


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
    serve(engine, make_load("alike", REQUESTS, (64, 64), (64, 64)), [f.name for f in folders])
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
    parser.add_argument("--steps", action="store_true", help="decode steps and memory only, without PEFT")
    parser.add_argument("--resident", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    threads = arguments.threads
    if arguments.resident:
        print_resident(arguments.resident, threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(measure(Path(folder), threads, arguments.quick, arguments.rounds, arguments.steps), quick=arguments.quick,
              packages=("torch", "transformers", "peft"))  # fmt: skip


def measure(folder: Path, threads: int, quick: bool, rounds: int, steps: bool) -> list[Result]:
    longest, rounds = (32, 1) if quick else (112, rounds)
    middle = (16 + longest) // 2
    loads = [
        make_load("alike", REQUESTS, (middle, middle), (middle, middle)),
        make_load("as traffic", REQUESTS, (16, longest), (16, longest)),
        make_load("as chat", REQUESTS, (middle * 3 // 4, middle * 3 // 4), (middle * 3 // 2, middle * 3 // 2)),
    ]
    engine = start_engine(threads)
    folders = [*make_adapters(folder, engine.decoder_config, (RANK,) * ADAPTERS, "adapter").values()]
    load_adapters(engine, folders)
    oracle = Oracle(model_path())
    close = gate(engine, oracle, folders)
    peft_threads = best_peft_threads(oracle, folders)
    print(
        f"gate passed: mixed batch equals PEFT, {close} close calls; {current_threads()} thread(s), PEFT {peft_threads}"
    )
    names = [f.name for f in folders]
    serve(engine, make_load("warm", REQUESTS, (16, 16), (4, 4)), names)
    found: list[Result] = []
    for load in [] if steps else loads:
        times = Times()
        for _ in range(rounds):
            times.add("base", serve(engine, load, [None]))
            times.add("lora", serve(engine, load, names))
            times.seconds["peft"].append(peft_seconds(oracle, folders, load, peft_threads))
        found += results(times, load, peft_threads, rounds)
    found += decode_overhead(engine, names, 2 if quick else 8)
    engine.close()
    return [*found, resident_result(folder, current_threads())]


@dataclass(slots=True)
class Times:
    """Seconds by case, one entry a round."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"base": [], "lora": [], "peft": []})
    steps: dict[str, list[float]] = field(default_factory=lambda: {"base": [], "lora": []})
    matmul: list[float] = field(default_factory=list)

    def add(self, case: str, run: Run) -> None:
        self.seconds[case].append(run.seconds)
        self.steps[case].append(statistics.median(run.decode_steps))


def paired(over: Sequence[float], under: Sequence[float]) -> float:
    """The median of the rounds' ratios: the machine's speed drifts between rounds, less within one."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def decode_overhead(engine: Engine, names: Sequence[str], rounds: int) -> list[Result]:
    """What adapters cost a decode step, and how near the base's step is to the bare products: short runs in turn, so
    that the machine's drift falls on both."""
    load = make_load("steps", REQUESTS, (64, 64), (16, 16))
    times = Times()
    for _ in range(rounds):
        times.add("base", serve(engine, load, [None]))
        times.add("lora", serve(engine, load, names))
        times.matmul.append(matmul_seconds(engine, REQUESTS, 15))
    step = {case: 1000 * statistics.median(values) for case, values in times.steps.items()}
    lora, limit = paired(times.steps["lora"], times.steps["base"]), paired(times.matmul, times.steps["base"])
    bare = 1000 * statistics.median(times.matmul)
    case = f"decode steps of {REQUESTS} in turn, 8 adapters r16, float32, {current_threads()} thread(s)"
    return [
        Result(
            "runtime", case, "LoRA overhead", step["lora"], "ms", step["base"], lora, "<= 1.25", lora <= 1.25, rounds
        ),
        Result(
            "runtime", case, "bare products / base", step["base"], "ms", bare, limit, ">= 0.60", limit >= 0.6, rounds
        ),
    ]


def results(times: Times, load: Load, peft_threads: int, rounds: int) -> list[Result]:
    seconds = times.seconds
    speed = {case: load.output_tokens / statistics.median(values) for case, values in seconds.items()}
    over_peft, overhead = paired(seconds["peft"], seconds["lora"]), paired(seconds["lora"], seconds["base"])
    rows: list[tuple[str, float, str, float, float, str, bool]] = [
        (
            "speed, over PEFT swapping adapters",
            speed["lora"],
            "tokens/s",
            speed["peft"],
            over_peft,
            ">= 4",
            over_peft >= 4,
        ),
        ("LoRA overhead, whole run", speed["lora"], "tokens/s", speed["base"], overhead, "<= 1.25", overhead <= 1.25),
    ]
    case = f"32 requests {load.name}, 8 adapters r16, float32, {current_threads()} thread(s), PEFT {peft_threads}"
    return [Result("runtime", case, *row, repeats=rounds) for row in rows]


if __name__ == "__main__":
    main()
