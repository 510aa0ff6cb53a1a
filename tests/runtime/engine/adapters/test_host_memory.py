"""Adapters beyond the host budget go to disk and come back; nobody waits behind one that is being read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorafleet_runtime.engine.adapters.disk_tier import DiskTier
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.model.tiny import random_adapter, save_adapter
from lorafleet_runtime.protocol import AbortRequest, AddRequest, Delta, LoadAdapter, Sampling, UnloadAdapter
from tests.runtime.engine.conftest import CONFIG

TARGETS = ("q_proj", "v_proj", "down_proj")


@pytest.fixture
def adapters(tmp_path: Path) -> list[Path]:
    return [save_adapter(tmp_path / f"a{i}", random_adapter(CONFIG, 8, TARGETS, i, strength=0.5)) for i in range(6)]


def load(engine: Engine, *folders: Path) -> None:
    for folder in folders:
        engine.handle(LoadAdapter(folder.name, f"sha256:{folder.name}", str(folder)))
    while any(a.state == "Loading" for a in engine.state().adapters):
        engine.step()
        time.sleep(0.001)


def ask(engine: Engine, name: str, adapter: str | None, tokens: int = 6) -> list[int]:
    engine.handle(AddRequest(name, [3, 1, 4, 1, 5], Sampling(max_tokens=tokens, temperature=0), adapter))
    return [token for delta in run(engine) for token in delta.token_ids]


def run(engine: Engine) -> list[Delta]:
    deltas: list[Delta] = []
    while engine.has_work:
        deltas += engine.step()
        if engine.only_reads:
            time.sleep(0.001)
    return deltas


def levels(engine: Engine) -> dict[str, str]:
    return {a.id: a.level for a in engine.state().adapters}


def one_size(engine: Engine) -> int:
    return engine.state().adapters[0].bytes


def file_of(engine: Engine) -> int:
    return engine._adapters.memory._disk._file.fileno()


def settle(engine: Engine) -> None:
    """Let what is under way to disk arrive there."""
    engine._adapters.memory._thread.submit(lambda: None).result()


def test_what_the_budget_cannot_hold_is_on_disk_and_answers_as_before(
    make: Callable[..., Engine], adapters: list[Path]
) -> None:
    roomy, tight = make(host_adapters=0), make(pages=40, host_adapters=2)
    for engine in (roomy, tight):
        load(engine, *adapters)
    assert list(levels(tight).values()).count("disk") == 4
    assert set(levels(roomy).values()) == {"host"}

    for turn in range(3):
        for folder in adapters:
            name = f"{turn}-{folder.name}"
            assert ask(tight, name, folder.name) == ask(roomy, name, folder.name)

    state = tight.state()
    assert state.counters.adapter_reads >= 6
    assert state.host is not None
    assert state.host.used <= state.host.budget


def test_nobody_waits_behind_an_adapter_that_is_being_read(make: Callable[..., Engine], adapters: list[Path]) -> None:
    engine = make(pages=40, host_adapters=1)
    load(engine, *adapters[:3])
    cold = next(name for name, level in levels(engine).items() if level == "disk")
    warm = next(name for name, level in levels(engine).items() if level != "disk")
    gate = engine._adapters.memory._thread.submit(time.sleep, 0.2)
    engine.handle(AddRequest("cold", [1, 2], Sampling(max_tokens=2, temperature=0), cold))
    engine.handle(AddRequest("warm", [1, 2], Sampling(max_tokens=2, temperature=0), warm))
    finished = [delta.request_id for delta in engine.step() + engine.step() + engine.step()]

    assert not gate.done()
    assert set(finished) == {"warm"}
    assert engine.only_reads
    assert engine.state().load is not None
    assert {d.request_id for d in run(engine)} == {"cold"}


def test_many_requests_for_one_cold_adapter_are_one_read_and_keep_their_order(
    make: Callable[..., Engine], adapters: list[Path]
) -> None:
    engine = make(pages=40, host_adapters=1)
    load(engine, *adapters[:2])
    cold = next(name for name, level in levels(engine).items() if level == "disk")
    for index in range(5):
        engine.handle(AddRequest(str(index), [7], Sampling(max_tokens=1, temperature=0), cold))

    assert [delta.request_id for delta in run(engine)] == list("01234")
    assert engine.state().counters.adapter_reads == 1


def test_a_copy_that_is_damaged_on_disk_is_packed_again(make: Callable[..., Engine], adapters: list[Path]) -> None:
    engine = make(pages=40, host_adapters=1)
    load(engine, *adapters[:2])
    expected = ask(engine, "before", adapters[0].name)
    ask(engine, "between", adapters[1].name)
    make_cold(engine, adapters[0].name, adapters[1].name)
    os.pwrite(file_of(engine), b"damaged", 100)

    assert ask(engine, "after", adapters[0].name) == expected


def make_cold(engine: Engine, cold: str, warm: str) -> None:
    """Push one adapter out of the pool and out of host memory."""
    engine._room.order.make_room(engine._room.pool.total, "prompt")
    if levels(engine)[cold] != "disk":
        ask(engine, f"warm {cold}", warm)
        engine._room.order.make_room(engine._room.pool.total, "prompt")
    settle(engine)
    assert levels(engine)[cold] == "disk"


def test_an_adapter_that_cannot_be_read_again_fails_alone(make: Callable[..., Engine], adapters: list[Path]) -> None:
    engine = make(pages=40, host_adapters=1)
    load(engine, *adapters[:2])
    lost, other = adapters[0], adapters[1]
    ask(engine, "1", other.name)
    make_cold(engine, lost.name, other.name)
    os.ftruncate(file_of(engine), 10)
    (lost / "adapter_model.safetensors").unlink()

    engine.handle(AddRequest("gone", [1], Sampling(max_tokens=1, temperature=0), lost.name))
    engine.handle(AddRequest("fine", [1], Sampling(max_tokens=1, temperature=0), other.name))
    deltas = {delta.request_id: delta for delta in run(engine)}

    assert deltas["fine"].token_ids
    assert deltas["gone"].error.startswith(f"adapter_lost: adapter {lost.name}")
    failed = next(a for a in engine.state().adapters if a.id == lost.name)
    assert (failed.state, failed.reason) == ("Failed", "FetchFailed"), "another load may find it"
    assert "adapter_model.safetensors" in failed.message
    assert engine.state().load is not None
    assert engine._room.pool.free + engine._room.order.pages == engine._room.pool.total


@pytest.mark.parametrize("how", ["abort", "unload"])
def test_a_request_may_leave_while_its_adapter_is_read(
    how: str, make: Callable[..., Engine], adapters: list[Path]
) -> None:
    engine = make(pages=40, host_adapters=1)
    load(engine, *adapters[:2])
    cold = next(name for name, level in levels(engine).items() if level == "disk")
    engine._adapters.memory._thread.submit(time.sleep, 0.1)
    engine.handle(AddRequest("r", [1], Sampling(max_tokens=1, temperature=0), cold))
    engine.step()
    if how == "abort":
        engine.handle(AbortRequest("r"))
        assert run(engine) == []
    else:
        engine.handle(UnloadAdapter(cold))
        assert [delta.request_id for delta in run(engine)] == ["r"], "a request that came before is served"
        assert cold not in levels(engine)
    assert engine.state().load is not None
    assert engine._scheduler.waiting == 0


def test_space_of_unloaded_adapters_is_used_again() -> None:
    tier = DiskTier()
    blob = torch.arange(64, dtype=torch.float32)
    for handle in range(10):
        tier.write(handle, blob + handle)
        tier.forget(handle - 1)

    assert tier._end == 2 * blob.nbytes
    found = tier.read(9)
    assert found is not None
    assert torch.equal(found, blob + 9)
    assert tier.read(3) is None
    tier.close()
