"""The engine against transformers + PEFT, one adapter at a time: the oracle of everything that the runtime computes."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.oracle import Oracle
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.model.config import LORA_TARGETS, RopeScaling
from lorafleet_runtime.model.tiny import TinyAdapter, random_adapter, save_adapter, save_tiny_model, tiny_config
from lorafleet_runtime.protocol import AddRequest, LoadAdapter, Sampling

LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 32)
FAMILIES = {
    "llama": tiny_config("llama"),
    "llama3-rope": tiny_config("llama", rope_scaling=LLAMA3),
    "linear-rope-untied": tiny_config("llama", rope_scaling=RopeScaling("linear", 2.0), tie_word_embeddings=False),
    "biased": tiny_config("llama", attention_bias=True, attention_output_bias=True, mlp_bias=True),
    "mistral": tiny_config("mistral"),
    "qwen2": tiny_config("qwen2", attention_bias=True),
    "qwen3": tiny_config("qwen3", qk_norm=True),
}


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    started: list[Engine] = []
    yield started
    for engine in started:
        engine.close()


def engine_of(engines: list[Engine], folder: Path, *, memory: int = 2**24, budget: int = 64) -> Engine:
    config = EngineConfig(
        str(folder), "tiny", dtype="float32", max_model_len=128, max_batched_tokens=budget, memory_bytes=memory,
        max_lora_rank=256, threads=1, max_num_seqs=16,
    )  # fmt: skip
    engine = start(config, lambda message, fraction: None)
    engines.append(engine)
    return engine


def load(engine: Engine, *folders: Path) -> None:
    for folder in folders:
        engine.handle(LoadAdapter(folder.name, f"sha256:{folder.name}", str(folder)))
    while any(a.state == "Loading" for a in engine.state().adapters):
        engine.step()
        time.sleep(0.001)  # the loader's thread needs the interpreter too
    states = {a.id: (a.state, a.message) for a in engine.state().adapters}
    assert all(states[f.name][0] == "Ready" for f in folders), states


def any_adapter(rng: random.Random, config: Any, seed: int) -> TinyAdapter:
    """Any rank, any targets, any of the scale rules, some layers left out."""
    targets = rng.sample(LORA_TARGETS, rng.randint(1, len(LORA_TARGETS)))
    rank = rng.choice((1, 2, 3, 5, 8, 16, 24, 64))
    return random_adapter(
        config,
        rank,
        targets,
        seed,
        alpha=rng.choice((0.5, 1.0, 2.0)) * rank,
        rslora=rng.random() < 0.3,
        rank_pattern={rng.choice(targets): rng.choice((1, 4, 7))} if rng.random() < 0.4 else None,
        alpha_pattern={f"layers.0.{_block(targets[0])}.{targets[0]}": 3.0} if rng.random() < 0.4 else None,
        layers=[1] if rng.random() < 0.2 else None,
        strength=0.3,
    )


def _block(target: str) -> str:
    return "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_reference_logits(family: str, tmp_path: Path, engines: list[Engine]) -> None:
    folder = save_tiny_model(tmp_path / "model", FAMILIES[family], seed=3)
    rng = random.Random(1)
    prompts = [[rng.randrange(256) for _ in range(length)] for length in (1, 5, 40, 90)]

    logits = final_logits(engine_of(engines, folder, budget=200), [(p, None) for p in prompts])

    oracle = Oracle(folder)
    for prompt, row in zip(prompts, logits, strict=True):
        torch.testing.assert_close(row, oracle.logits(prompt, None)[-1], atol=1e-4, rtol=1e-4)


def final_logits(engine: Engine, requests: list[tuple[list[int], str | None]]) -> list[torch.Tensor]:
    """Logits after each prompt, all prompts in one ragged batch."""
    for index, (prompt, adapter) in enumerate(requests):
        engine.handle(AddRequest(str(index), prompt, Sampling(max_tokens=1, temperature=0), adapter))
    batch = engine._scheduler.schedule()
    assert batch is not None
    assert len(batch.rows) == len(requests), "the token budget must hold all prompts"
    logits = engine._runner.logits(engine._runner.plan(batch))
    by_request = {row.sequence.request_id: logits[i] for i, row in enumerate(batch.rows)}
    engine._scheduler.commit(batch, [0] * len(batch.rows))
    return [by_request[str(i)] for i in range(len(requests))]


@pytest.mark.slow
def test_two_hundred_random_adapters_give_the_reference_logits_in_mixed_batches(
    tmp_path: Path, engines: list[Engine]
) -> None:
    rng = random.Random(7)
    worst = 0.0
    for round_, family in enumerate(("llama", "qwen2", "qwen3", "biased")):
        config = FAMILIES[family]
        folder = save_tiny_model(tmp_path / family, config, seed=round_)
        engine, oracle = engine_of(engines, folder, memory=2**26, budget=400), Oracle(folder)
        for group in range(5):
            adapters = []
            for index in range(10):
                seed = 1000 * round_ + 10 * group + index
                adapters.append(save_adapter(tmp_path / family / f"a{seed}", any_adapter(rng, config, seed)))
            load(engine, *adapters)
            choices: list[Path | None] = [None, *adapters]
            requests = [([rng.randrange(256) for _ in range(rng.randint(1, 30))], choice) for choice in choices]
            rng.shuffle(requests)
            logits = final_logits(engine, [(p, a.name if a else None) for p, a in requests])
            for (prompt, adapter), row in zip(requests, logits, strict=True):
                expected = oracle.logits(prompt, adapter)[-1]
                worst = max(worst, float((row - expected).abs().max()))
                torch.testing.assert_close(row, expected, atol=1e-4, rtol=0)
    print(f"largest difference of a logit over 200 adapters: {worst:.2e}")


@pytest.mark.parametrize("memory_pages", [600, 40], ids=["roomy", "preempting"])
def test_greedy_output_is_the_references_in_a_mixed_batch_with_joins_and_leaves(
    memory_pages: int, tmp_path: Path, engines: list[Engine]
) -> None:
    config = FAMILIES["llama"]
    folder = save_tiny_model(tmp_path / "model", config, seed=5)
    rng = random.Random(11)
    same_layout = [random_adapter(config, 8, ("q_proj", "v_proj", "down_proj"), seed=i, strength=0.4) for i in range(4)]
    adapters = [
        save_adapter(tmp_path / f"a{i}", adapter)
        for i, adapter in enumerate([*same_layout, *(any_adapter(rng, config, 50 + i) for i in range(5))])
    ]
    page_bytes = config.num_layers * 16 * 2 * config.kv_dim * 4
    engine = engine_of(engines, folder, memory=memory_pages * page_bytes, budget=48)
    load(engine, *adapters)
    oracle = Oracle(folder)
    choices: list[Path | None] = [None, *adapters]
    requests = {
        f"r{i}": (
            [rng.randrange(256) for _ in range(rng.randint(1, 60))],
            choices[i % len(choices)],
            rng.randint(3, 40),
        )
        for i in range(40)
    }
    outputs: dict[str, list[int]] = {name: [] for name in requests}
    pending = list(requests)
    while pending or engine.has_work:
        for name in [pending.pop(0) for _ in range(min(len(pending), rng.choice((0, 0, 1, 2))))]:
            prompt, adapter, length = requests[name]
            sampling = Sampling(max_tokens=length, temperature=0)
            engine.handle(AddRequest(name, prompt, sampling, adapter.name if adapter else None))
        for delta in engine.step():
            assert not delta.error
            outputs[delta.request_id] += delta.token_ids

    close = sum(oracle.explains(requests[name][0], output, requests[name][1]) for name, output in outputs.items())

    tokens = sum(map(len, outputs.values()))
    print(f"{tokens} tokens, {close} close calls, {engine.state().counters.preemptions} preemptions")
    assert all(len(outputs[name]) == length for name, (_, _, length) in requests.items())
    assert close <= tokens // 100
    assert (engine.state().counters.preemptions > 0) == (memory_pages == 40)


def test_rows_of_a_batch_do_not_depend_on_how_a_prompt_was_cut(tmp_path: Path, engines: list[Engine]) -> None:
    folder = save_tiny_model(tmp_path / "model", FAMILIES["qwen3"], seed=2)
    prompt = [(7 * i) % 256 for i in range(100)]
    outputs = []
    for budget in (16, 33, 128):
        engine = engine_of(engines, folder, budget=budget)
        engine.handle(AddRequest("r", prompt, Sampling(max_tokens=20, temperature=0)))
        tokens: list[int] = []
        while engine.has_work:
            tokens += [t for delta in engine.step() for t in delta.token_ids]
        outputs.append(tokens)

    assert outputs[0] == outputs[1] == outputs[2]


def test_what_a_prefix_cache_holds_changes_no_token(tmp_path: Path, engines: list[Engine]) -> None:
    """Conversations that go on, with and without adapters, in a pool so small that prefixes come and go."""
    config = FAMILIES["llama"]
    folder = save_tiny_model(tmp_path / "model", config, seed=6)
    rng = random.Random(13)
    adapters = [save_adapter(tmp_path / f"a{i}", any_adapter(rng, config, 70 + i)) for i in range(2)]
    engine = engine_of(engines, folder, memory=40 * config.num_layers * 16 * 2 * config.kv_dim * 4, budget=48)
    load(engine, *adapters)
    oracle = Oracle(folder)
    system = [rng.randrange(256) for _ in range(40)]
    cached = close = tokens = 0
    for turn in range(3):
        asked: dict[str, tuple[list[int], Path | None]] = {}
        for index in range(6):
            prompt = system[: 16 + 8 * turn] + [rng.randrange(256) for _ in range(rng.randint(1, 20))]
            asked[f"{turn}-{index}"] = prompt, [None, *adapters][index % 3]
        outputs: dict[str, list[int]] = {name: [] for name in asked}
        for name, (prompt, adapter) in asked.items():
            sampling = Sampling(max_tokens=12, temperature=0)
            engine.handle(AddRequest(name, prompt, sampling, adapter.name if adapter else None, tenant="t"))
        while engine.has_work:
            for delta in engine.step():
                outputs[delta.request_id] += delta.token_ids
                cached = max(cached, delta.cached_tokens)
        close += sum(oracle.explains(asked[name][0], output, asked[name][1]) for name, output in outputs.items())
        tokens += sum(map(len, outputs.values()))

    assert cached >= 16
    assert close <= tokens // 50
