"""Tensor parallelism: what adapters cost on several ranks, in the two partitions of `model/parallel.py`.

`python -m bench.tensor_parallel [--quick] [--ranks 2 4] [--rounds N]`: a random decoder of 8 layers and hidden size
512, 32 sequences over 8 adapters of ranks 4 to 64 on all linear layers, decode steps, gloo, one thread a rank. Both
partitions multiply these adapters one by one (no two share a layout), so that what differs is what travels.

Collectives are counted on rank 0 and must be what the formulas of S-LoRA 6 say; bytes are what one rank puts in, and
what a ring sends: 2(N-1)/N of an all-reduce, (N-1) of an all-gather's part. Engines take turns, step by step.

Gate: greedy output of both partitions equals one rank's, token by token.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.collective_counts import Counted, expected, ring_bytes
from bench.record import Result, write
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.core.batch import Batch, Row
from lorafleet_runtime.core.sequence import Sequence as Tokens
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.ranks.messages import decode_to_rank
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.engine.step_plan import RunStep, planned_rows
from lorafleet_runtime.frames import frame
from lorafleet_runtime.model.config import LORA_TARGETS
from lorafleet_runtime.model.tiny import random_adapter, save_adapter, save_tiny_model, tiny_config
from lorafleet_runtime.protocol import AddRequest, LoadAdapter, Sampling

CONFIG = tiny_config(
    "llama", hidden_size=512, intermediate_size=1408, num_layers=8, num_heads=8, num_kv_heads=4, head_dim=64,
    vocab_size=4096,
)  # fmt: skip
RANKS = (4, 8, 12, 16, 24, 32, 48, 64)
SEQUENCES, STEPS = 32, 24


@contextmanager
def engine_of(folder: Path, ranks: int, partition: str) -> Iterator[Engine]:
    config = EngineConfig(
        str(folder / "model"), "bench", dtype="float32", max_model_len=256, max_batched_tokens=512,
        memory_bytes=256 * 2**20 // ranks, threads=1, tensor_parallel=ranks, lora_partition=partition,
        prefix_caching=False, overlap="off",
    )  # fmt: skip
    engine = start(config, lambda message, fraction: None)
    try:
        for i in range(len(RANKS)):
            engine.handle(LoadAdapter(f"a{i}", f"sha256:{i}", str(folder / f"a{i}")))
        while any(a.state == "Loading" for a in engine.state().adapters):
            engine.step()
            time.sleep(0.01)
        yield engine
    finally:
        engine.close()


def ask(engine: Engine, length: int, *, adapted: bool) -> None:
    rng = random.Random(1)
    for i in range(SEQUENCES):
        prompt = [rng.randrange(4096) for _ in range(12)]
        adapter = f"a{i % len(RANKS)}" if adapted else None
        engine.handle(AddRequest(str(i), prompt, Sampling(max_tokens=length, temperature=0), adapter))


def outputs(engine: Engine, length: int) -> dict[str, list[int]]:
    ask(engine, length, adapted=True)
    tokens: dict[str, list[int]] = {}
    while engine.has_work:
        for delta in engine.step():
            tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
    return tokens


class Run:
    """One engine at its decode steps, with or without adapters; `seconds` by step."""

    def __init__(self, engine: Engine, ranks: int, partition: str, *, adapted: bool) -> None:
        self.name = f"{partition if adapted else 'base only'}"
        self.engine, self.ranks, self.partition, self.adapted = engine, ranks, partition, adapted
        self.lora_ranks = [RANKS[i % len(RANKS)] if adapted else 0 for i in range(SEQUENCES)]
        self.seconds: list[float] = []

    def begin(self) -> None:
        """Prompts, so that every step to come decodes all sequences."""
        ask(self.engine, STEPS + 2, adapted=self.adapted)
        self.engine.step()
        self.engine.step()

    def step(self) -> None:
        begun = time.perf_counter()
        deltas = self.engine.step()
        self.seconds.append(time.perf_counter() - begun)
        assert len(deltas) == SEQUENCES, len(deltas)

    def end(self) -> None:
        while self.engine.has_work:
            self.engine.step()

    def counted(self) -> tuple[Counter[str], Counter[str]]:
        """One step's collectives; exits if they are not what the formulas say."""
        model = self.engine._model
        assert model.collectives is not None
        model.collectives = counted = Counted(model.collectives)
        self.step()
        model.collectives = counted.inner
        self.seconds.pop()
        found = (counted.calls, counted.bytes)
        if found != (wanted := expected(CONFIG, self.ranks, self.partition, self.lora_ranks)):
            sys.exit(f"{self.name} on {self.ranks} ranks: collectives {found}, and the formulas say {wanted}")
        return found


def compare(folder: Path, ranks: int, rounds: int, reference: dict[str, list[int]]) -> list[Result]:
    with engine_of(folder, ranks, "replicated") as ours, engine_of(folder, ranks, "slora") as slora:
        for name, engine in (("replicated", ours), ("slora", slora)):
            if outputs(engine, 16) != reference:
                sys.exit(f"{name} on {ranks} ranks: other tokens than one rank gives")
        runs = [Run(ours, ranks, "replicated", adapted=True), Run(slora, ranks, "slora", adapted=True)]
        runs.insert(0, Run(ours, ranks, "replicated", adapted=False))
        found = {}
        for _ in range(rounds):
            # An engine runs the base alone and adapters in turn, one after the other; the two partitions step by step.
            for group in (runs[:1], runs[1:]):
                for run in group:
                    run.begin()
                    found[run.name] = run.counted()
                for _ in range(STEPS - 2):
                    for run in group:
                        run.step()
                for run in group:
                    run.end()
        held = {name: sum(a.bytes for a in e.state().adapters) for name, e in (("replicated", ours), ("slora", slora))}
    return [*_results(runs, found, ranks, rounds), *_memory(held, ranks)]


def _results(
    runs: Sequence[Run], found: dict[str, tuple[Counter[str], Counter[str]]], ranks: int, rounds: int
) -> list[Result]:
    base_calls = found["base only"][0].total()
    base_bytes = ring_bytes(found["base only"][1], ranks)
    ours = statistics.median(runs[1].seconds) * 1e3
    results: list[Result] = []
    for run in runs:
        case, repeats = f"{run.name}, {ranks} ranks", rounds * (STEPS - 2)
        calls, sizes = found[run.name]
        free = calls.total() == base_calls if run.name == "replicated" else None
        milliseconds = statistics.median(run.seconds) * 1e3
        results += [
            Result("tensor_parallel", case, "collectives a step", calls.total(), "calls", base_calls,
                   calls.total() / base_calls, "" if free is None else "== base", free),
            Result("tensor_parallel", case, "sent by a rank a step", ring_bytes(sizes, ranks), "bytes", base_bytes,
                   ring_bytes(sizes, ranks) / base_bytes),
            Result("tensor_parallel", case, "decode step of 32", milliseconds, "ms", ours, milliseconds / ours,
                   "> replicated" if run.name == "slora" else "",
                   milliseconds > ours if run.name == "slora" else None, repeats),
        ]  # fmt: skip
    return results


def _memory(held: dict[str, int], ranks: int) -> list[Result]:
    return [
        Result("tensor_parallel", f"{name}, {ranks} ranks", "8 adapters on a rank", size, "bytes", held["replicated"],
               size / held["replicated"])
        for name, size in held.items()
    ]  # fmt: skip


def plan_seconds() -> list[Result]:
    """What it costs to tell the others: 32 sequences of 2,000 tokens each, 125 pages."""
    sampling, pages = Sampling(max_tokens=1), list(range(125))
    sequences = [Tokens(str(i), [7] * 2000, 2000, sampling, None, pages=pages) for i in range(SEQUENCES)]
    batch = Batch(tuple(Row(sequence, 1999, 1, samples=True) for sequence in sequences))
    made: list[float] = []
    read: list[float] = []
    for _ in range(200):
        begun = time.process_time()
        data = frame(RunStep(planned_rows(batch, None), [], []))
        made.append(time.process_time() - begun)
        begun = time.process_time()
        plan = decode_to_rank(data[4:])
        assert isinstance(plan, RunStep)
        read.append(time.process_time() - begun)
    case = f"{SEQUENCES} sequences of 2,000 tokens"
    return [
        Result("tensor_parallel", case, "a step's plan, made", statistics.median(made) * 1e6, "us", repeats=200),
        Result("tensor_parallel", case, "a step's plan, read", statistics.median(read) * 1e6, "us", repeats=200),
        Result("tensor_parallel", case, "a step's plan, size", len(data), "bytes"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 ranks, one round, nothing written")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tiny_model(folder / "model", CONFIG, seed=1)
        for i, rank in enumerate(RANKS):
            save_adapter(folder / f"a{i}", random_adapter(CONFIG, rank, LORA_TARGETS, i, strength=0.2))
        with engine_of(folder, 1, "replicated") as alone:
            reference = outputs(alone, 16)
        results = plan_seconds()
        for ranks in [2] if arguments.quick else arguments.ranks:
            results += compare(folder, ranks, 1 if arguments.quick else arguments.rounds, reference)
    write(results, quick=arguments.quick)


if __name__ == "__main__":
    main()
