"""The engine in-process on a tiny model: adapters come and go under traffic, and no request harms another."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.tiny import random_adapter, save_adapter, tiny_config
from lorafleet_runtime.protocol import (
    AbortRequest,
    AddRequest,
    Delta,
    LoadAdapter,
    Sampling,
    UnloadAdapter,
)

CONFIG: DecoderConfig = tiny_config("llama")


def adapter_at(folder: Path, seed: int, *, alpha: float = 16.0, strength: float = 1.0) -> Path:
    adapter = random_adapter(CONFIG, 4, ("q_proj", "down_proj"), seed, alpha=alpha, strength=strength)
    return save_adapter(folder, adapter)


def settle(engine: Engine) -> dict[str, tuple[str, str]]:
    """Step until nothing loads; (state, reason) by adapter."""
    deadline = time.monotonic() + 30
    while any(a.state == "Loading" for a in engine.state().adapters):
        assert time.monotonic() < deadline
        engine.step()
        time.sleep(0.001)
    return {a.id: (a.state, a.reason) for a in engine.state().adapters}


def ask(name: str, adapter: str | None = None, *, length: int = 8, temperature: float = 0, seed: int = 0) -> AddRequest:
    sampling = Sampling(max_tokens=length, temperature=temperature, seed=seed, logprobs=0)
    return AddRequest(name, [ord(c) for c in "a prompt"], sampling, adapter)


def run(engine: Engine) -> dict[str, list[Delta]]:
    """Step until idle; deltas by request."""
    deltas: dict[str, list[Delta]] = {}
    for _ in range(1000):
        if not engine.has_work:
            return deltas
        for delta in engine.step():
            deltas.setdefault(delta.request_id, []).append(delta)
    raise AssertionError("still busy after 1000 steps")


def tokens(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def test_adapters_join_and_leave_while_others_decode(make: Callable[..., Engine], tmp_path: Path) -> None:
    engine = make()
    engine.handle(LoadAdapter("a", "r1", str(adapter_at(tmp_path / "a", 1))))
    settle(engine)
    engine.handle(ask("long", "a", length=60))
    engine.step()

    engine.handle(LoadAdapter("b", "r1", str(adapter_at(tmp_path / "b", 2))))
    waited = 0
    while not any(a.id == "b" and a.state == "Ready" for a in engine.state().adapters):
        assert engine.step(), "the running request gets a token in every step of the load"
        waited += 1
        time.sleep(0.002)
    engine.handle(ask("short", "b", length=3))
    engine.handle(UnloadAdapter("a"))
    states = {a.id: a.state for a in engine.state().adapters}
    assert states == {"a": "Draining", "b": "Ready"}

    deltas = run(engine)

    assert len(tokens(deltas["short"])) == 3
    assert deltas["long"][-1].finish_reason == "length"
    assert {a.id for a in engine.state().adapters} == {"b"}


def test_a_new_revision_answers_new_requests_and_running_ones_finish_on_the_old(
    make: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = make()
    engine.handle(LoadAdapter("a", "r1", str(adapter_at(tmp_path / "one", 1))))
    settle(engine)
    engine.handle(ask("alone", "a", length=100))
    old = tokens(run(engine)["alone"])
    engine.handle(ask("old", "a", length=100))
    seen = [engine.step()[0]]

    engine.handle(LoadAdapter("a", "r2", str(adapter_at(tmp_path / "two", 2))))
    while not any(a.revision == "r2" and a.state == "Ready" for a in engine.state().adapters):
        seen += engine.step()
        time.sleep(0.01)  # the file comes long before the last token
    engine.handle(ask("new", "a", length=100))
    deltas = run(engine)

    assert tokens([*seen, *deltas["old"]]) == old
    assert tokens(deltas["new"]) != old
    assert [(a.id, a.revision) for a in engine.state().adapters] == [("a", "r2")]


def test_a_bad_adapter_fails_alone_and_a_good_one_takes_its_place(make: Callable[..., Engine], tmp_path: Path) -> None:
    engine = make()
    engine.handle(ask("base", length=10))
    bad = adapter_at(tmp_path / "bad", 1)
    (bad / "adapter_model.safetensors").write_bytes(b"not safetensors")
    engine.handle(LoadAdapter("a", "r1", str(bad)))

    assert settle(engine)["a"] == ("Failed", "InvalidAdapter")
    engine.handle(LoadAdapter("a", "r2", str(adapter_at(tmp_path / "good", 1))))
    assert settle(engine)["a"] == ("Ready", "")


def test_an_adapter_that_no_pool_can_hold_is_refused_with_the_numbers(
    make: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = make()
    total = engine.state().pages
    assert total is not None
    wide = random_adapter(CONFIG, 64, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), 1)
    needed = 0
    for index in range(40):
        engine.handle(LoadAdapter(f"p{index}", "r1", str(save_adapter(tmp_path / f"p{index}", wide)), pinned=True))
        if settle(engine)[f"p{index}"][0] == "Failed":
            break
        needed = sum(a.pages for a in engine.state().adapters)

    failed = next(a for a in engine.state().adapters if a.state == "Failed")
    assert failed.reason == "NoRoom"
    assert f"of the pool's {total.total} pages" in failed.message
    assert needed < total.total


def test_an_unknown_adapter_and_a_prompt_beyond_the_context_are_refused_by_name(make: Callable[..., Engine]) -> None:
    engine = make()
    engine.handle(ask("nobody", "x.unknown"))
    engine.handle(AddRequest("long", [1] * 128, Sampling(max_tokens=1)))
    engine.handle(ask("good"))

    deltas = run(engine)

    assert deltas["nobody"][0].error.startswith("adapter_not_found: adapter x.unknown")
    assert deltas["long"][0].error.startswith("context_length_exceeded: the prompt has 128 tokens")
    assert len(tokens(deltas["good"])) == 8


def test_an_adapter_that_overflows_ends_its_own_requests_only(make: Callable[..., Engine], tmp_path: Path) -> None:
    engine = make()
    engine.handle(LoadAdapter("hot", "r1", str(adapter_at(tmp_path / "hot", 1, alpha=1e38, strength=1e4))))
    assert settle(engine)["hot"][0] in ("Ready", "Failed")
    if settle(engine)["hot"][0] == "Failed":
        engine.handle(LoadAdapter("hot", "r2", str(adapter_at(tmp_path / "hot2", 1, alpha=1e30, strength=1e3))))
        assert settle(engine)["hot"][0] == "Ready"
    engine.handle(ask("overflows", "hot"))
    engine.handle(ask("base"))

    deltas = run(engine)

    assert deltas["overflows"][-1].error.startswith("numeric_overflow: adapter hot")
    assert len(tokens(deltas["base"])) == 8
    assert not engine.has_work


def test_a_seed_gives_the_same_tokens_alone_and_in_a_crowd(make: Callable[..., Engine], tmp_path: Path) -> None:
    engine = make()
    engine.handle(LoadAdapter("a", "r1", str(adapter_at(tmp_path / "a", 1, strength=0.3))))
    settle(engine)
    engine.handle(ask("alone", "a", temperature=1.0, seed=42, length=30))
    alone = tokens(run(engine)["alone"])

    for index in range(9):
        engine.handle(ask(f"other{index}", "a" if index % 2 else None, temperature=1.0, seed=index))
    engine.step()
    engine.handle(ask("crowd", "a", temperature=1.0, seed=42, length=30))

    assert tokens(run(engine)["crowd"]) == alone
    engine.handle(ask("other seed", "a", temperature=1.0, seed=43, length=30))
    assert tokens(run(engine)["other seed"]) != alone


def test_a_resumed_request_goes_on_as_if_it_had_never_stopped(make: Callable[..., Engine]) -> None:
    engine = make()
    engine.handle(ask("whole", temperature=1.0, seed=7, length=20))
    whole = tokens(run(engine)["whole"])
    request = ask("rest", temperature=1.0, seed=7, length=20)

    engine.handle(AddRequest("rest", request.prompt_token_ids, request.sampling, output_token_ids=whole[:9]))

    assert tokens(run(engine)["rest"]) == whole[9:]


def test_an_abort_gives_everything_back(make: Callable[..., Engine], tmp_path: Path) -> None:
    engine = make()
    engine.handle(LoadAdapter("a", "r1", str(adapter_at(tmp_path / "a", 1))))
    settle(engine)
    for name in ("first", "second"):
        engine.handle(ask(name, "a", length=100))
        engine.step()
    engine.handle(AbortRequest("first"))
    engine.handle(AbortRequest("never existed"))

    deltas = run(engine)

    assert set(deltas) == {"second"}
    pages = engine.state().pages
    assert pages is not None
    assert pages.free + pages.evictable == pages.total


def test_settings_that_do_not_fit_are_refused_with_what_would_do(make: Callable[..., Engine]) -> None:
    with pytest.raises(ConfigError, match="raise --memory to"):
        make(pages=1, max_model_len=CONFIG.max_position_embeddings)
    with pytest.raises(ConfigError, match="positions that"):
        make(max_model_len=CONFIG.max_position_embeddings + 1)
