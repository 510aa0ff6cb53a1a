"""A request that is given up, wherever it is by then, leaves nothing behind, and the others get their tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lorafleet_runtime.core.invariants import leaks, violations
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.protocol import AbortRequest, AddRequest, Delta, LoadAdapter, Sampling, UnloadAdapter
from tests.runtime.engine.test_engine import adapter_at, run, settle, tokens

PROMPT = list(range(40, 60))
CANCELLED = "cancelled"


def ask(name: str, adapter: str | None = "a", *, prompt: int = 20, length: int = 60) -> AddRequest:
    return AddRequest(name, (PROMPT * 10)[:prompt], Sampling(max_tokens=length, temperature=0), adapter)


def just_arrived(engine: Engine) -> None:
    engine.handle(ask(CANCELLED))


def queued_without_a_seat(engine: Engine) -> None:
    for name in ("one", "two"):
        engine.handle(ask(name, None))
    engine.handle(ask(CANCELLED))
    for _ in range(3):
        engine.step()
    assert waiting(engine) == 1


def queued_for_its_adapters_pages(engine: Engine) -> None:
    """The whole pool is taken: its adapter has no pages, and gets none before others end."""
    for name in ("one", "two"):
        engine.handle(ask(name, None, prompt=120, length=8))
    engine.step()
    engine.handle(ask(CANCELLED, "b"))
    engine.step()
    assert waiting(engine) == 1


def with_half_of_its_prompt_computed(engine: Engine) -> None:
    engine.handle(ask(CANCELLED, prompt=120))
    assert engine.step() == []  # 64 tokens of the 120 fit into a step
    assert running(engine) == 1


def decoding(engine: Engine) -> None:
    engine.handle(ask(CANCELLED))
    for _ in range(5):
        assert engine.step()


def preempted(engine: Engine) -> None:
    """Two that grow beyond the pool: the newer one gives its pages back."""
    engine.handle(ask("one", None, prompt=100, length=27))
    engine.handle(ask(CANCELLED, "a", prompt=100, length=27))
    for _ in range(40):
        engine.step()
        if engine.state().counters.preemptions:
            return
    raise AssertionError("nothing was preempted")


def just_finished(engine: Engine) -> None:
    engine.handle(ask(CANCELLED, length=3))
    while not any(delta.finish_reason for delta in engine.step()):
        pass


def refused(engine: Engine) -> None:
    engine.handle(ask(CANCELLED, prompt=200))


def waiting(engine: Engine) -> int:
    load = engine.state().load
    assert load is not None
    return load.waiting


def running(engine: Engine) -> int:
    load = engine.state().load
    assert load is not None
    return load.running


@pytest.fixture
def engine(make: Callable[..., Engine], tmp_path: Path) -> Engine:
    """Sixteen pages, a context of 128 tokens, two seats, two adapters."""
    engine = make(16, seqs=2)
    for name, seed in (("a", 1), ("b", 2)):
        engine.handle(LoadAdapter(name, "r1", str(adapter_at(tmp_path / name, seed))))
    assert settle(engine) == {"a": ("Ready", ""), "b": ("Ready", "")}
    return engine


@pytest.mark.parametrize("state", [
    just_arrived, queued_without_a_seat, queued_for_its_adapters_pages, with_half_of_its_prompt_computed, decoding,
    preempted, just_finished, refused,
])  # fmt: skip
@pytest.mark.parametrize("unloading", [False, True], ids=["", "its adapter is being unloaded too"])
def test_a_cancelled_request_leaves_nothing(engine: Engine, state: Callable[[Engine], None], unloading: bool) -> None:
    state(engine)
    if unloading:
        for adapter in ("a", "b"):
            engine.handle(UnloadAdapter(adapter))
    for _ in range(2):  # the second finds nothing, and does nothing
        engine.handle(AbortRequest(CANCELLED))
    assert violations(engine._room, engine._scheduler) == []
    deltas = run(engine)

    assert not any(tokens(found) for name, found in deltas.items() if name == CANCELLED)
    assert leaks(engine._room, engine._scheduler) == []
    now = engine.state()
    assert now.pages is not None
    assert (now.pages.kv, running(engine), waiting(engine)) == (0, 0, 0)
    assert [(a.running, a.waiting) for a in now.adapters] == ([] if unloading else [(0, 0), (0, 0)])


@pytest.mark.parametrize("state", [queued_without_a_seat, decoding, preempted])
def test_others_get_the_tokens_that_they_would_have_got_alone(
    engine: Engine, make: Callable[..., Engine], state: Callable[[Engine], None]
) -> None:
    alone = make(64, seqs=2)
    alone.handle(ask("one", None, prompt=100, length=27))
    expected = tokens(run(alone)["one"])
    got: list[Delta] = []
    if state is not preempted:
        state(engine)
        for name in ("one", "two"):
            engine.handle(AbortRequest(name))
        engine.handle(ask("one", None, prompt=100, length=27))
    else:
        engine.handle(ask("one", None, prompt=100, length=27))
        engine.handle(ask(CANCELLED, "a", prompt=100, length=27))
        while not engine.state().counters.preemptions:
            got += [delta for delta in engine.step() if delta.request_id == "one"]
    engine.handle(AbortRequest(CANCELLED))
    got += run(engine).get("one", [])

    assert tokens(got) == expected
    assert leaks(engine._room, engine._scheduler) == []
