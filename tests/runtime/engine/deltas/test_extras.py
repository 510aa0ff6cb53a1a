"""Adapters that bring whole matrices, in a pool that is too small for all: counted, evicted, uploaded again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.peft_adapters import KINDS, save_with_peft
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.model.tiny import tiny_config
from lorafleet_runtime.protocol import AddRequest, LoadAdapter, Sampling

CONFIG = tiny_config("llama")
CHANGES = ("saved-all", "saved-lm-head", "embedding-dora", "tokens-of-each", "saved-norms", "lm-head-only-bias")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def folders(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("adapters")
    return {kind: save_with_peft(model, made / kind, KINDS[kind], seed) for seed, kind in enumerate(CHANGES)}


def load(engine: Engine, folders: dict[str, Path]) -> dict[str, str]:
    """Messages by adapter."""
    for name, folder in folders.items():
        engine.handle(LoadAdapter(name, f"sha256:{name}", str(folder)))
    while any(a.state == "Loading" for a in engine.state().adapters):
        engine.step()
    return {a.id: a.message for a in engine.state().adapters}


def outputs(engine: Engine, folders: dict[str, Path]) -> dict[str, list[int]]:
    """What two requests to each adapter and to the base model get, all waiting at once."""
    found: dict[str, list[int]] = {}
    for index, name in enumerate([None, *folders] * 2):
        prompt = [(31 * index + 7 * i) % 256 for i in range(20)]
        found[f"{name}/{index}"] = []
        engine.handle(AddRequest(f"{name}/{index}", prompt, Sampling(max_tokens=12, temperature=0), name))
    while engine.has_work:
        for delta in engine.step():
            assert not delta.error
            found[delta.request_id] += delta.token_ids
    return found


def test_a_small_pool_says_the_same_as_a_large_one(make: Callable[..., Engine], folders: dict[str, Path]) -> None:
    roomy = make(2000)
    assert not any(load(roomy, folders).values())
    largest = max(a.pages for a in roomy.state().adapters)
    small = make(largest + 20)
    assert not any(load(small, folders).values())

    assert outputs(small, folders) == outputs(roomy, folders)
    assert sum(small.state().counters.adapter_evictions.values()) > 0
    assert sum(roomy.state().counters.adapter_evictions.values()) == 0


def test_pages_hold_all_that_an_adapter_brings(make: Callable[..., Engine], folders: dict[str, Path]) -> None:
    engine = make(2000)
    load(engine, folders)
    pages = {a.id: a.pages for a in engine.state().adapters}
    info = engine.state().pages
    assert info is not None
    page_bytes = info.bytes
    matrix = CONFIG.vocab_size * CONFIG.hidden_size * 4

    assert pages["saved-all"] * page_bytes >= 2 * matrix
    assert matrix <= pages["saved-lm-head"] * page_bytes < 1.2 * matrix
    assert pages["tokens-of-each"] * page_bytes < 0.2 * matrix
    assert {a.id: a.targets for a in engine.state().adapters}["embedding-dora"] == ["embed_tokens", "lm_head"]


def test_whole_matrices_that_the_pool_cannot_hold_are_refused_with_both_numbers(
    make: Callable[..., Engine], folders: dict[str, Path]
) -> None:
    engine = make(20)
    messages = load(engine, {"saved-all": folders["saved-all"]})

    state = engine.state().adapters[0]
    assert (state.state, state.reason) == ("Failed", "NoRoom")
    assert "of the pool's 20 pages" in messages["saved-all"]
