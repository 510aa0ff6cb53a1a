"""The engine in this process, on a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.model.tiny import save_tiny_model, tiny_config

CONFIG = tiny_config("llama")
ADAPTER_BYTES = 32768
"""Of rank 8 on q, v and down."""
PAGE_BYTES = CONFIG.num_layers * 16 * 2 * CONFIG.kv_dim * 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), CONFIG, seed=4)


@pytest.fixture
def make(model: Path) -> Iterator[Callable[..., Engine]]:
    started: list[Engine] = []

    def make_engine(
        pages: int = 200, *, max_model_len: int = 128, seqs: int = 16, fairness: str = "", host_adapters: int = 0,
        overlap: str = "off", speculate: int = 0,
    ) -> Engine:  # fmt: skip
        config = EngineConfig(
            str(model),
            "tiny",
            dtype="float32",
            max_model_len=max_model_len,
            max_num_seqs=seqs,
            max_batched_tokens=64,
            memory_bytes=pages * PAGE_BYTES,
            threads=1,
            fairness=fairness,
            overlap=overlap,
            speculate=speculate,
        )
        started.append(start(config, lambda message, fraction: None))
        if host_adapters:
            started[-1]._adapters.memory.tier.budget = host_adapters * ADAPTER_BYTES
        return started[-1]

    yield make_engine
    for engine in started:
        engine.close()
