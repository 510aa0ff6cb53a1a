"""Engines of a tiny model on the operations of one's choice, with adapters loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.model.tiny import random_adapter, save_adapter, save_tiny_model
from lorafleet_runtime.protocol import LoadAdapter
from tests.runtime.engine.gpu.traffic import CONFIG, RANKS, TARGETS


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engine]]:
    model = save_tiny_model(tmp_path / "model", CONFIG, seed=4)
    adapters = {
        name: save_adapter(tmp_path / name, random_adapter(CONFIG, RANKS[name], targets, seed, strength=2.0))
        for seed, (name, targets) in enumerate(TARGETS.items())
    }
    started: list[Engine] = []

    def make_engine(kernels: str, speculate: int = 0, overlap: str = "off") -> Engine:
        monkeypatch.setenv("LORAFLEET_KERNELS", kernels)
        config = EngineConfig(
            str(model), "tiny", dtype="float32", max_model_len=64, max_num_seqs=6, max_batched_tokens=24,
            memory_bytes=2**20, threads=1, overlap=overlap, speculate=speculate,
        )  # fmt: skip
        engine = start(config, lambda message, fraction: None)
        started.append(engine)
        for name, folder in adapters.items():
            engine.handle(LoadAdapter(name, "r1", str(folder)))
        while any(a.state == "Loading" for a in engine.state().adapters):
            engine.step()
        return engine

    yield make_engine
    for engine in started:
        engine.close()
