"""`python -m bench.kernels --tune`: what `lorafleet-runtime tune` does for a model, at Llama-3-8B's shapes, without its
files. Stored where that stores: bench and engine run it afterwards on this card."""

from __future__ import annotations

from bench.kernels_cases import LLAMA_3_8B
from lorafleet_kernels.gpu.tuning.search import Budget
from lorafleet_kernels.gpu.tuning.store import own_folder
from lorafleet_kernels.gpu.tuning.tuner import Stand
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.gpu.tune import Order, summary, this_card, tune_and_store

SECONDS = 300.0
ENGINE = EngineConfig("", "bench", dtype="bfloat16", max_num_seqs=256, max_batched_tokens=2048)


def tune() -> None:
    order = Order.of(ENGINE, LLAMA_3_8B)
    command = "python -m bench.kernels --tune"
    found = tune_and_store(order, this_card(), Stand.here(), Budget(SECONDS), own_folder(), command, _print)
    print(summary(found, len(order.steps)))


def _print(line: str) -> None:
    print(line, flush=True)
