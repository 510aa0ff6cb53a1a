"""S-LoRA's headline shape: throughput and first tokens from 5 to 2,000 registered adapters, ranks 8 to 64 mixed.

`python -m bench.adapters_scale [--quick] [--seconds S] [--rounds N] [--counts ...] [--targets attention|all]`:
SmolLM2-135M in-process, a closed loop of 32 requests in flight (128 tokens in, 16 to 112 out), adapters drawn
uniformly or by Zipf's law (exponent 1), on q, k, v and o as in the paper or on all linear layers. The pool holds the
requests and about 40 adapters. Two engines take turns: one with 5 adapters throughout, one with ever more, so that the
machine's drift falls on both. Every adapter has a revision of its own; the files behind them are eight, so that the
disk holds 2,000 adapters: reading from disk is from the page cache here. What so many distinct adapters in a batch cost
by their bytes alone is recorded beside: a model of 135 million weights hides less of it than one of 7 billion.

Then, with all registered: a request on a cold adapter beside one on a warm one, and the longest steps while adapters
are read and loaded, against the median step with as many prompts. Charts go into docs/engine.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench import adapters_scale_results as found
from bench.adapters_scale_load import PROMPT, ClosedLoop, Popularity, Shape, register
from bench.adapters_scale_steps import cold_and_warm, steps_while_loading
from bench.engine_adapters import make_adapters
from bench.in_process import model_path
from bench.record import Result, write
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.core.pages import PAGE_TOKENS, pages_for_tokens
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.model.adapter import WEIGHTS_FILE
from lorafleet_runtime.model.calibration import best_dtype
from lorafleet_runtime.model.checkpoint import read_config
from lorafleet_runtime.model.config import LORA_TARGETS
from lorafleet_runtime.model.threads import threads

FEW = 5
COUNTS = (5, 32, 100, 1000, 2000)
RANKS = (8, 16, 32, 64)
POPULARITIES: tuple[Popularity, ...] = ("uniform", "zipf")
TARGETS = {"attention": ("q_proj", "k_proj", "v_proj", "o_proj"), "all": LORA_TARGETS}
SHAPE, QUICK_SHAPE = Shape(), Shape(outputs=(4, 24))
ADAPTERS_IN_POOL = 40


def main() -> None:
    """Measure, print, record, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 and 40 adapters, seconds each, nothing written")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each engine's turn")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--targets", choices=sorted(TARGETS), default="attention")
    parser.add_argument("--threads", type=int, default=0, help="0: what the engine chooses")
    given = parser.parse_args()
    if given.quick:
        given.counts, given.seconds, given.rounds = [FEW, 40], min(given.seconds, 4.0), 1
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), given)
    write(results, quick=given.quick)


def measure(folder: Path, given: argparse.Namespace) -> list[Result]:
    """The curve, the cold adapters, the steps."""
    targets = TARGETS[given.targets]
    files = [*make_adapters(folder, read_config(model_path()), RANKS * 2, "file", targets=targets).values()]
    shape = QUICK_SHAPE if given.quick else SHAPE
    dtype = best_dtype()
    memory = _pool_bytes(files, dtype)
    few, many = (_engine(memory, dtype, given.threads) for _ in range(2))
    case = f"{given.targets} r8-64, {str(dtype).removeprefix('torch.')}, {threads()} thread(s)"
    read = _step_bytes(few, files, shape, dtype)
    register(few, files, 0, FEW)
    points: list[found.Point] = []
    registered = 0
    for count in sorted(given.counts):
        seconds = register(many, files, registered, count)
        print(f"{count} adapters registered; the last {count - registered} took {seconds:.1f} s", flush=True)
        registered = count
        for popularity in POPULARITIES:
            loops = ClosedLoop(few, FEW, popularity, shape), ClosedLoop(many, count, popularity, shape)
            for number in range(given.rounds):
                turns = [loop.run(given.seconds) for loop in (loops if number % 2 == 0 else loops[::-1])]
                points.append(found.Point(count, popularity, *(turns if number % 2 == 0 else turns[::-1])))
                print(points[-1].line(), flush=True)
            for loop in loops:
                loop.end()
    few.close()
    beside = replace(shape, flight=shape.flight - 8)
    probes = cold_and_warm(many, registered, beside, 4 if given.quick else 24)
    steps = steps_while_loading(many, files, registered, shape, given.seconds)
    many.close()
    if not given.quick:
        found.draw(points)
    return found.results(points, probes, steps, read, case)


def _pool_bytes(files: Sequence[Path], dtype: torch.dtype) -> int:
    """Room for the requests in flight at their longest and for `ADAPTERS_IN_POOL` adapters of mean size."""
    config = read_config(model_path())
    page = config.num_layers * PAGE_TOKENS * 2 * config.kv_dim * dtype.itemsize
    adapters = sum((folder / WEIGHTS_FILE).stat().st_size for folder in files) // 2 * dtype.itemsize
    requests = SHAPE.flight * pages_for_tokens(PROMPT + SHAPE.outputs[1] + 1) * page
    return requests + ADAPTERS_IN_POOL * adapters // len(files)


def _step_bytes(engine: Engine, files: Sequence[Path], shape: Shape, dtype: torch.dtype) -> found.StepBytes:
    config = engine.decoder_config
    length = PROMPT + sum(shape.outputs) / 4  # half of a mean output is there, on average
    kv = shape.flight * length * config.num_layers * 2 * config.kv_dim * dtype.itemsize
    adapters = [(folder / WEIGHTS_FILE).stat().st_size / 2 * dtype.itemsize for folder in files]
    return found.StepBytes(sum(linear.weight.nbytes for linear in engine.linears()), kv, sum(adapters) / len(adapters))


def _engine(memory: int, dtype: torch.dtype, wanted_threads: int) -> Engine:
    config = EngineConfig(
        str(model_path()), "base", dtype=str(dtype).removeprefix("torch."), max_model_len=512,
        max_num_seqs=SHAPE.flight, memory_bytes=memory, threads=wanted_threads,
        overlap="off",  # steps are timed one by one
    )  # fmt: skip
    return start(config, lambda message, fraction: None)


if __name__ == "__main__":
    main()
