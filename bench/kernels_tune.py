"""`python -m bench.kernels --tune`: what `lorafleet-runtime tune` does for a model, at Llama-3-8B's shapes, without its
files. Stored where that stores: bench and engine run it afterwards on this card."""

from __future__ import annotations

from dataclasses import replace

from bench.kernels_cases import LLAMA_3_8B
from lorafleet_kernels.gpu.tuning.search import Budget
from lorafleet_kernels.gpu.tuning.stand import Stand
from lorafleet_kernels.gpu.tuning.store import own_folder
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.gpu.tune import summary, tasks_of, tune_and_store

SECONDS = 300.0
"""For each of:"""
USUAL = EngineConfig("", "bench", dtype="bfloat16", max_num_seqs=256, max_batched_tokens=2048)
ENGINES = (USUAL, replace(USUAL, kv_dtype="fp8", adapter_dtype="fp8"))


def tune() -> None:
    stand, command = Stand.here(), "python -m bench.kernels --tune"
    for engine in ENGINES:
        tasks = tasks_of(engine, LLAMA_3_8B)
        found = tune_and_store(tasks, stand, Budget(SECONDS), own_folder(), command, _print)
        print(summary(found, len(tasks)))


def _print(line: str) -> None:
    print(line, flush=True)
