"""Every kind of adapter that PEFT writes, side by side in one batch, each against PEFT alone."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.oracle import Oracle
from bench.peft_adapters import BIAS_KINDS, KINDS, TIED_KINDS, save_with_peft
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.model.tiny import save_tiny_model, tiny_config
from lorafleet_runtime.protocol import AddRequest, LoadAdapter, Sampling

FAMILIES = {
    "llama": tiny_config("llama"),
    "llama-tied": tiny_config("llama", tie_word_embeddings=True, num_layers=3),
    "qwen2": tiny_config("qwen2"),
    "qwen3-tied": tiny_config("qwen3", tie_word_embeddings=True),
    "biased": tiny_config("llama", attention_bias=True, attention_output_bias=True, mlp_bias=True),
}

# PEFT's own, of models that are made for a test and of combinations that only tests make.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    started: list[Engine] = []
    yield started
    for engine in started:
        engine.close()


def engine_of(engines: list[Engine], folder: Path) -> Engine:
    config = EngineConfig(
        str(folder), "tiny", dtype="float32", max_model_len=128, max_batched_tokens=2000, memory_bytes=2**26,
        max_lora_rank=64, threads=1, max_num_seqs=128,
    )  # fmt: skip
    engines.append(start(config, lambda message, fraction: None))
    return engines[-1]


def load(engine: Engine, folders: list[Path]) -> None:
    for folder in folders:
        engine.handle(LoadAdapter(folder.name, f"sha256:{folder.name}", str(folder)))
    while any(a.state == "Loading" for a in engine.state().adapters):
        engine.step()
        time.sleep(0.001)  # the loader's thread needs the interpreter too
    failed = {a.id: a.message for a in engine.state().adapters if a.state != "Ready"}
    assert not failed, failed


def kinds_of(family: str) -> dict[str, dict[str, object]]:
    config = FAMILIES[family]
    kinds = {**KINDS, **(TIED_KINDS if config.tie_word_embeddings else {})}
    return {name: dict(kind) for name, kind in {**kinds, **(BIAS_KINDS if config.attention_bias else {})}.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_gives_pefts_logits_in_one_mixed_batch(
    family: str, tmp_path: Path, engines: list[Engine]
) -> None:
    model = save_tiny_model(tmp_path / "model", FAMILIES[family], seed=3)
    kinds = kinds_of(family)
    folders = [save_with_peft(model, tmp_path / name, kind, seed) for seed, (name, kind) in enumerate(kinds.items())]
    engine = engine_of(engines, model)
    load(engine, folders)
    rng = random.Random(5)
    choices: list[Path | None] = [None, *folders, None, *folders]
    rng.shuffle(choices)
    requests = [([rng.randrange(256) for _ in range(rng.randint(1, 24))], choice) for choice in choices]
    for index, (prompt, adapter) in enumerate(requests):
        name = adapter.name if adapter else None
        engine.handle(AddRequest(str(index), prompt, Sampling(max_tokens=8, temperature=0), name))

    batch = engine._scheduler.schedule()
    assert batch is not None
    assert len(batch.rows) == len(requests), "the token budget must hold all prompts"
    logits = engine._runner.logits(engine._runner.plan(batch))
    engine._scheduler.commit(batch, logits.argmax(1).tolist())
    first = {row.sequence.request_id: row_logits for row, row_logits in zip(batch.rows, logits, strict=True)}
    outputs = {name: [int(row.argmax())] for name, row in first.items()}
    while engine.has_work:
        for delta in engine.step():
            outputs[delta.request_id] += delta.token_ids

    close = 0
    for choice in dict.fromkeys(choices):
        oracle = Oracle(model)  # PEFT loads biases and copies of the embedding into the base model: a fresh one each
        base = oracle.logits(list(range(20)), None)[-1]
        if choice is not None:
            assert (oracle.logits(list(range(20)), choice)[-1] - base).abs().max() > 0.01, f"{choice.name} is not heard"
        for index, (prompt, adapter) in enumerate(requests):
            if adapter == choice:
                expected = oracle.logits(prompt, adapter)[-1]
                difference = float((first[str(index)] - expected).abs().max())
                assert difference <= 1e-4, f"{adapter}: logits differ by {difference}"
                close += oracle.explains(prompt, outputs[str(index)], adapter)
    assert close <= len(requests) // 20
