"""What the engine tells of its adapters, piece by piece, is what it would tell all at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.soak_targets import EngineTarget
from bench.soak_traffic import live
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.protocol import AdapterState, LoadAdapter
from tests.runtime.engine.test_engine import adapter_at, ask, run, settle


class Listening(EngineTarget):
    """A violation: what was heard so far differs from the whole state."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, adapters=24)
        self.heard: dict[int, AdapterState] = {}

    def violations(self) -> list[str]:
        news = self._engine.adapter_news()
        if news is not None:
            for key in news.gone:
                del self.heard[key]
            self.heard |= news.told
        whole = sorted(map(repr, self._engine.state().adapters))
        return [] if sorted(map(repr, self.heard.values())) == whole else [f"{self.heard} was told of {whole}"]


def test_the_pieces_make_the_whole_after_every_step(tmp_path: Path) -> None:
    target = Listening(tmp_path)
    try:
        assert live(target, 400, seed=5).broken is None
    finally:
        target.close()


def test_adapters_that_nobody_uses_are_told_once(make: Callable[..., Engine], tmp_path: Path) -> None:
    engine = make()
    for name, seed in (("a", 1), ("b", 2)):
        engine.handle(LoadAdapter(name, "r1", str(adapter_at(tmp_path / name, seed))))
    settle(engine)
    first = engine.adapter_news()
    engine.handle(ask("r", "a"))
    engine.step()
    second = engine.adapter_news()
    run(engine)
    engine.adapter_news()

    assert first is not None
    assert {state.id for state in first.told.values()} == {"a", "b"}
    assert second is not None
    assert [(state.id, state.running) for state in second.told.values()] == [("a", 1)]
    assert engine.adapter_news() is None
    assert engine.state(adapters=False).adapters == []
