"""A replica of several ranks, in real processes over gloo: every token is the one that a single rank gives."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.adapters.loader import Loaded
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.ranks.loader import outcome
from lorafleet_runtime.engine.ranks.messages import AdapterRead
from lorafleet_runtime.engine.ranks.ranks import Ranks
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.errors import ConfigError, RankDied
from lorafleet_runtime.model.config import LORA_TARGETS
from lorafleet_runtime.model.lora import Layout, PackedAdapter
from lorafleet_runtime.model.tiny import random_adapter, save_adapter, save_tiny_model, tiny_config
from lorafleet_runtime.protocol import AbortRequest, AddRequest, LoadAdapter, Sampling, UnloadAdapter

BIASES = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}
CONFIG = tiny_config("llama", num_heads=8, num_kv_heads=4, vocab_size=263, **BIASES)
CONTEXT, PAGES = 96, 60
HOST_BYTES = 40_000
"""Less than the four adapters' parts on any rank: some are always on disk."""
SHAPES: Sequence[tuple[int, tuple[str, ...]]] = (
    (3, ("q_proj", "v_proj", "o_proj")), (8, LORA_TARGETS), (5, ("gate_proj", "down_proj")), (8, LORA_TARGETS),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    save_tiny_model(folder / "model", CONFIG, seed=4)
    for i, (rank, targets) in enumerate(SHAPES):
        save_adapter(folder / f"a{i}", random_adapter(CONFIG, rank, targets, i, strength=0.5))
    return folder


def launch(
    folder: Path, ranks: int, partition: str = "replicated", processes: Ranks | None = None, speculate: int = 0
) -> Engine:
    page_bytes = CONFIG.num_layers * 16 * 2 * CONFIG.kv_dim * 4 // ranks
    config = EngineConfig(
        str(folder / "model"), "tiny", dtype="float32", max_model_len=CONTEXT, max_num_seqs=16, max_batched_tokens=64,
        memory_bytes=PAGES * page_bytes if ranks > 1 else 2**22, threads=1,
        tensor_parallel=ranks, lora_partition=partition, speculate=speculate,
        host_memory_bytes=2**22 if ranks == 1 else HOST_BYTES,
    )  # fmt: skip
    return start(config, lambda message, fraction: None, processes)


def load(engine: Engine, folder: Path, *names: str) -> None:
    for name in names:
        engine.handle(LoadAdapter(name, f"sha256:{name}", str(folder / name)))
    deadline = time.monotonic() + 60
    while any(a.state == "Loading" for a in engine.state().adapters):
        assert time.monotonic() < deadline
        engine.step()
        time.sleep(0.001)


def ask(name: str, adapter: str | None, *, length: int = 12, prompt: int = 20, temperature: float = 0) -> AddRequest:
    seed = sum(map(ord, name))
    sampling = Sampling(max_tokens=length, temperature=temperature, seed=seed, logprobs=2)
    return AddRequest(name, [(seed * 7 + 3 * i) % 250 for i in range(prompt)], sampling, adapter)


def run(engine: Engine, steps: int = 5000) -> dict[str, list[int]]:
    """Step until idle, or so many times; tokens by request."""
    tokens: dict[str, list[int]] = {}
    for _ in range(steps):
        if not engine.has_work:
            break
        if engine.only_reads:
            time.sleep(0.001)
        for delta in engine.step():
            assert delta.finish_reason != "error", delta
            tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
    return tokens


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[Engine]:
    """One rank with room for everything: the reference."""
    engine = launch(folder, 1)
    load(engine, folder, *(f"a{i}" for i in range(len(SHAPES))))
    yield engine
    engine.close()


@pytest.fixture(scope="module", params=[
    (2, "replicated"), (2, "slora"),
    pytest.param((4, "replicated"), marks=pytest.mark.slow), pytest.param((4, "slora"), marks=pytest.mark.slow),
], ids=lambda p: f"{p[0]}-{p[1]}")  # fmt: skip
def spread(folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    ranks, partition = request.param
    engine = launch(folder, ranks, partition)
    load(engine, folder, *(f"a{i}" for i in range(len(SHAPES))))
    yield engine
    engine.close()


def test_a_mixed_batch_gives_the_tokens_of_one_rank(alone: Engine, spread: Engine) -> None:
    requests = [
        ask(f"mixed{i}", None if i % 5 == 4 else f"a{i % 5}", prompt=5 + 3 * i, temperature=0.8 * (i % 2))
        for i in range(10)
    ]
    for engine in (alone, spread):
        for request in requests:
            engine.handle(request)

    assert run(spread) == run(alone)


def test_memory_that_is_too_small_for_all_preempts_and_evicts_and_changes_no_token(
    alone: Engine, spread: Engine
) -> None:
    before = spread.state().counters
    waves: list[list[str | None]] = [["a0", "a1", "a2", "a3"], [None], ["a0", "a2"]]
    for wave, adapters in enumerate(waves):
        for i in range(14):
            request = ask(f"long{i}", adapters[i % len(adapters)], length=50 + wave, prompt=30)
            alone.handle(request)
            spread.handle(request)
        assert run(spread) == run(alone)
    after = spread.state().counters
    assert after.preemptions > before.preemptions
    assert sum(after.adapter_evictions.values()) > sum(before.adapter_evictions.values())
    assert after.adapter_loads > before.adapter_loads
    assert after.adapter_reads > before.adapter_reads  # from each rank's own disk, beside the steps


def test_adapters_and_requests_join_and_leave_between_steps(alone: Engine, spread: Engine, folder: Path) -> None:
    alone.handle(ask("early", "a1", length=40))
    alone.handle(ask("late", "a2", length=10))
    wanted = run(alone)
    spread.handle(ask("early", "a1", length=40))
    spread.handle(ask("aborted", "a0", length=40))
    tokens = run(spread, 5)
    spread.handle(AbortRequest("aborted"))
    spread.handle(UnloadAdapter("a0"))
    spread.handle(LoadAdapter("new", "sha256:new", str(folder / "a0")))
    spread.handle(UnloadAdapter("new"))  # while it is read, by this rank or by others
    spread.handle(ask("late", "a2", length=10))
    for name, more in run(spread).items():
        tokens.setdefault(name, []).extend(more)
    load(spread, folder, "a0")
    spread.handle(ask("again", "a0"))
    alone.handle(ask("again", "a0"))

    del tokens["aborted"]
    assert tokens == wanted
    assert run(spread) == run(alone)
    assert {a.id for a in spread.state().adapters} == {"a0", "a1", "a2", "a3"}


@pytest.mark.slow
@pytest.mark.parametrize("partition", ["replicated", "slora"])
def test_ranks_check_guesses_together_and_say_the_same(alone: Engine, folder: Path, partition: str) -> None:
    repeats = {i: Sampling(max_tokens=40, temperature=1, seed=i, logit_bias={i: 1e3, 9: 1e3}) for i in range(6)}
    requests = [AddRequest(f"repeats{i}", [1, 2, i], repeats[i], f"a{i}" if i < 4 else None) for i in repeats]
    requests += [ask(f"free{i}", f"a{i}", length=30, temperature=0.8 * (i % 2)) for i in range(4)]
    engine = launch(folder, 2, partition, speculate=6)
    try:
        load(engine, folder, *(f"a{i}" for i in range(len(SHAPES))))
        for request in requests:
            alone.handle(request)
            engine.handle(request)
        assert run(engine) == run(alone)
        counters = engine.state().counters
        assert 0 < counters.accepted_tokens < counters.draft_tokens
    finally:
        engine.close()


def test_a_bad_adapter_fails_alone_on_every_rank(spread: Engine, folder: Path, tmp_path: Path) -> None:
    bad = save_adapter(tmp_path / "bad", random_adapter(CONFIG, 4, ("q_proj",), 9))
    (bad / "adapter_model.safetensors").write_bytes(b"not safetensors")
    load(spread, tmp_path, "bad")
    assert {a.id: a.state for a in spread.state().adapters}["bad"] == "Failed"
    spread.handle(ask("after", "a3"))

    assert len(run(spread)["after"]) == 12
    spread.handle(UnloadAdapter("bad"))


def test_pages_of_each_rank_are_told_not_of_all(alone: Engine, spread: Engine) -> None:
    whole, part = alone.state(), spread.state()
    assert whole.pages is not None and part.pages is not None
    assert whole.model is not None and part.model is not None

    assert part.pages.total == PAGES
    assert part.pages.bytes < whole.pages.bytes
    assert part.model.parameters == whole.model.parameters


def packed(pages: int) -> PackedAdapter:
    return PackedAdapter(Layout((), pages, ()), torch.empty(0))


MESSAGE = LoadAdapter("a", "r", "/folder")


def test_an_adapter_is_usable_when_every_rank_has_it_and_fails_with_the_first_that_has_not() -> None:
    own = Loaded(MESSAGE, packed(3), 4, ("q_proj",))
    failed = outcome(own, {2: AdapterRead(1, 3), 1: AdapterRead(1, 0, "InvalidAdapter", "disk full")})
    other = outcome(own, {1: AdapterRead(1, 4)})
    mine = Loaded(MESSAGE, None, reason="RankTooHigh", error="rank 9")

    assert outcome(own, {1: AdapterRead(1, 3)}) is own
    assert (failed.packed, failed.reason, failed.error) == (None, "InvalidAdapter", "on rank 1: disk full")
    assert (other.packed, "4 pages on rank 1 and 3 on rank 0" in other.error) == (None, True)
    assert outcome(mine, {1: AdapterRead(1, 3)}) is mine


def test_a_model_that_cannot_be_spread_is_refused_before_any_process_starts(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--tensor-parallel 3 does not divide the model's 8 attention heads"):
        launch(folder, 3)


def test_a_rank_that_ends_is_noticed_at_once_and_named(folder: Path) -> None:
    died: queue.SimpleQueue[str] = queue.SimpleQueue()
    ranks = Ranks(2, died.put)
    engine = launch(folder, 2, processes=ranks)
    engine.handle(ask("running", None, length=60))
    engine.step()
    (pid,) = ranks.pids
    os.kill(pid, signal.SIGKILL)

    assert died.get(timeout=10) == "rank 1 of 2 ended by SIGKILL"
    with pytest.raises(RankDied, match="rank 1 of 2 ended by SIGKILL"):
        engine.step()
    engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_rank_that_ends_in_the_middle_of_a_step_does_not_hang_it(folder: Path) -> None:
    ranks = Ranks(2, lambda reason: None)
    engine = launch(folder, 2, processes=ranks)
    (pid,) = ranks.pids
    os.kill(pid, signal.SIGSTOP)  # the step waits for it in a collective
    engine.handle(ask("running", None, length=60))
    threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()

    with pytest.raises(RankDied, match="rank 1 of 2 ended by SIGKILL"):
        engine.step()
    engine.close()
