"""Adapters of every kind that PEFT writes, on two ranks: the tokens of one rank."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.peft_adapters import KINDS, save_with_peft
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.model.tiny import save_tiny_model, tiny_config
from lorafleet_runtime.protocol import AdapterState, AddRequest, LoadAdapter, Sampling

# The first is PEFT's own, of models that are made for a test.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.slow,
]
CONFIG = tiny_config("llama", attention_output_bias=True, attention_bias=True, vocab_size=263)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    model = save_tiny_model(folder / "model", CONFIG, seed=3)
    for seed, (name, kind) in enumerate(KINDS.items()):
        save_with_peft(model, folder / name, dict(kind), seed)
    return folder


def tokens_of(engine: Engine, names: list[str]) -> dict[str, list[int]]:
    """All in one batch, the base model among them."""
    for i, name in enumerate([*names, ""]):
        prompt = [(11 * i + 5 * j) % 250 for j in range(14)]
        engine.handle(AddRequest(name, prompt, Sampling(max_tokens=8, temperature=0), name or None))
    found: dict[str, list[int]] = {}
    while engine.has_work:
        for delta in engine.step():
            found.setdefault(delta.request_id, []).extend(delta.token_ids)
    return found


def launch(folder: Path, ranks: int, partition: str) -> tuple[Engine, dict[str, AdapterState]]:
    config = EngineConfig(
        str(folder / "model"), "tiny", dtype="float32", max_model_len=64, memory_bytes=2**26 // ranks, threads=1,
        tensor_parallel=ranks, lora_partition=partition,
    )  # fmt: skip
    engine = start(config, lambda message, fraction: None)
    for name in KINDS:
        engine.handle(LoadAdapter(name, f"sha256:{name}", str(folder / name)))
    while any(a.state == "Loading" for a in engine.state().adapters):
        engine.step()
        time.sleep(0.001)
    return engine, {a.id: a for a in engine.state().adapters}


@pytest.mark.parametrize("partition", ["replicated", "slora"])
def test_every_kind_gives_the_tokens_of_one_rank(folder: Path, partition: str) -> None:
    alone, _ = launch(folder, 1, "replicated")
    spread, states = launch(folder, 2, partition)

    assert {name: state.message for name, state in states.items() if state.state != "Ready"} == {}
    assert tokens_of(spread, list(KINDS)) == tokens_of(alone, list(KINDS))
    alone.close()
    spread.close()

