"""Many adapters at once: a flood of bad ones, and more good ones than the pool, host memory or a batch can hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lorafleet_runtime.core.invariants import leaks
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.model.tiny import random_adapter, save_adapter
from lorafleet_runtime.protocol import LoadAdapter
from tests.runtime.engine.test_engine import CONFIG, adapter_at, ask, run, settle, tokens


def without_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def cut_short(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def with_a_config_that_is_no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def of_a_rank_that_is_too_high(folder: Path) -> None:
    save_adapter(folder, random_adapter(CONFIG, 65, ("q_proj",)))


def gone(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def test_in_a_flood_of_bad_loads_each_fails_alone_and_good_ones_serve(
    make: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = make()
    spoilers = [without_weights, cut_short, with_a_config_that_is_no_json, of_a_rank_that_is_too_high, gone]
    engine.handle(ask("meanwhile", length=100))
    for index in range(40):
        bad = adapter_at(tmp_path / f"bad-{index}", index)
        spoilers[index % len(spoilers)](bad)
        engine.handle(LoadAdapter(f"bad-{index}", "r1", str(bad)))
        if index % 10 == 0:
            good = adapter_at(tmp_path / f"good-{index}", index)
            engine.handle(LoadAdapter(f"good-{index}", "r1", str(good)))
    outcomes = settle(engine)
    states = {state.id: state for state in engine.state().adapters}
    for index in range(0, 40, 10):
        engine.handle(ask(f"r{index}", f"good-{index}"))
    engine.handle(ask("refused", "bad-3"))
    deltas = run(engine)

    assert {name: state for name, (state, _) in outcomes.items() if name.startswith("good")} == {
        f"good-{index}": "Ready" for index in range(0, 40, 10)
    }
    for index in range(40):
        assert outcomes[f"bad-{index}"][0] == "Failed"
        assert states[f"bad-{index}"].message
    assert len({states[f"bad-{index}"].message for index in range(len(spoilers))}) == len(spoilers)
    assert all(len(tokens(deltas[f"r{index}"])) == 8 for index in range(0, 40, 10))
    assert deltas["refused"][-1].error.startswith("adapter_not_found")
    assert leaks(engine._room, engine._scheduler) == []


def test_three_hundred_adapters_with_one_request_each_are_all_served_by_a_small_pool(
    make: Callable[..., Engine], tmp_path: Path
) -> None:
    """Host memory holds eight of them, and the pool fewer than a batch asks for."""
    engine = make(24, host_adapters=8)
    folders = [adapter_at(tmp_path / str(seed), seed) for seed in range(4)]
    for index in range(300):
        engine.handle(LoadAdapter(f"a{index}", "r1", str(folders[index % 4])))
    assert set(settle(engine).values()) == {("Ready", "")}
    for index in range(300):
        engine.handle(ask(f"r{index}", f"a{index}", length=4))
    answers: dict[str, list[int]] = {}
    while engine.has_work:
        for delta in engine.step():
            assert delta.finish_reason != "error", delta.error
            answers.setdefault(delta.request_id, []).extend(delta.token_ids)

    assert len(answers) == 300
    for index in range(300):  # the same weights give the same answer, whoever came from where
        assert answers[f"r{index}"] == answers[f"r{index % 4}"]
    assert leaks(engine._room, engine._scheduler) == []


def test_one_hot_adapter_among_hundreds_costs_what_it_would_alone_to_tell(
    make: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = make()
    folder = adapter_at(tmp_path / "a", 1)
    for index in range(300):
        engine.handle(LoadAdapter(f"a{index}", "r1", str(folder)))
    settle(engine)
    engine.adapter_news()
    told = []
    for count in range(5):
        engine.handle(ask(f"r{count}", "a7", length=2))
        run(engine)
        news = engine.adapter_news()
        told.append(len(news.told) if news else 0)

    assert told == [1, 0, 0, 0, 0]  # it has come into the pool; idle again, it is what it was
