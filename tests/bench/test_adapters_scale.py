"""The closed loops of the scale bench on a tiny engine whose pool is too small for all adapters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.adapters_scale_load import ClosedLoop, Shape, Turn, register
from bench.adapters_scale_results import Point, StepBytes, results
from bench.adapters_scale_steps import cold_and_warm, steps_while_loading
from bench.engine_adapters import make_adapters
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.model.tiny import save_tiny_model, tiny_config

SHAPE = Shape(flight=6, outputs=(2, 6))
CONFIG = tiny_config(vocab_size=49152)  # as many tokens as the loop draws from


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [*make_adapters(tmp_path_factory.mktemp("adapters"), CONFIG, (2, 4, 2, 4), "file").values()]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    folder = save_tiny_model(tmp_path / "model", CONFIG)
    config = EngineConfig(
        str(folder), "base", dtype="float32", max_model_len=144, max_num_seqs=6, memory_bytes=2**20, threads=1,
        overlap="off",
    )  # fmt: skip
    engine = start(config, lambda message, fraction: None)
    yield engine
    engine.close()


def test_all_are_registered_although_the_pool_holds_few(engine: Engine, files: list[Path]) -> None:
    register(engine, files, 0, 60)
    state = engine.state()
    assert state.pages is not None
    assert [a.state for a in state.adapters] == ["Ready"] * 60
    assert sum(a.pages for a in state.adapters) > state.pages.total


def test_a_loop_keeps_its_requests_in_flight_and_ends_without_leaving_any(engine: Engine, files: list[Path]) -> None:
    register(engine, files, 0, 60)
    loop = ClosedLoop(engine, 60, "uniform", SHAPE)
    turn = Turn()
    loop.run(0.0)  # sends, and is over
    for _ in range(30):
        loop.step(turn)
    assert {step.rows for step in turn.steps} <= set(range(1, 7))
    assert len(turn.ttfts) > 6
    assert turn.tokens == sum(step.rows for step in turn.steps)
    loop.end()
    assert not engine.has_work
    assert all(a.running == a.waiting == 0 for a in engine.state().adapters)


def test_few_are_popular_under_zipf_and_all_alike_under_uniform(engine: Engine, files: list[Path]) -> None:
    register(engine, files, 0, 60)
    seen = {}
    for popularity in ("zipf", "uniform"):
        loop = ClosedLoop(engine, 60, popularity, SHAPE)
        turn = Turn()
        loop.run(0.0)
        for _ in range(60):
            loop.step(turn)
        seen[popularity] = sum(turn.distinct) / len(turn.distinct)
        loop.end()
    assert seen["zipf"] < seen["uniform"]


def test_cold_and_warm_adapters_are_probed_and_the_steps_compared(engine: Engine, files: list[Path]) -> None:
    register(engine, files, 0, 60)
    probes = cold_and_warm(engine, 60, Shape(4, (2, 6)), 3)
    assert len(probes.cold) == len(probes.warm) == len(probes.copies) == 3
    assert min(probes.cold + probes.warm + probes.decode) > 0
    longest = steps_while_loading(engine, files, 60, SHAPE, 0.3)
    assert longest.steps > 0
    assert len(engine.state().adapters) > 60

    turn = ClosedLoop(engine, 60, "uniform", SHAPE).run(0.2)
    points = [Point(5, "uniform", turn, turn), Point(60, "uniform", turn, turn)]
    lines = results(points, probes, longest, StepBytes(1000, 200.0, 10.0), "tiny")
    assert [line.baseline for line in lines if line.metric.startswith("that ratio")] == [1.0, 1.0]
    assert [line.case for line in lines if line.goal.startswith(">=")] == ["60 adapters, uniform; tiny"]


def test_bytes_alone_leave_less_the_more_distinct_adapters_a_step_reads() -> None:
    read = StepBytes(weights=270, kv=90.0, adapter=7.0)
    assert read.left(5, 5) == 1
    assert read.left(5, 25) == pytest.approx((270 + 90 + 35) / (270 + 90 + 175))
