"""What an engine had loaded comes into the one that takes its place, without a new order."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorafleet_runtime.frontend.scripted_engine import ScriptedEngine
from lorafleet_runtime.frontend.service import Service
from lorafleet_runtime.protocol import AdapterState

Order = Callable[[str], dict[str, Any]]


@pytest.fixture
async def followed(service: Service) -> AsyncIterator[Service]:
    task = asyncio.create_task(service.adapters.follow_engine())
    await asyncio.sleep(0)
    yield service
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def load(admin: httpx.AsyncClient, body: dict[str, Any], adapter: str = "acme.a", **fields: Any) -> int:
    response = await admin.put(f"/admin/adapters/{adapter}", params={"wait": 5}, json=body | fields)
    return response.status_code


async def settled(service: Service) -> dict[str, AdapterState]:
    """The adapters' states once none is Loading."""
    async with asyncio.timeout(10):
        while not (states := service.adapters.states()) or any(state.state == "Loading" for state in states):
            await asyncio.sleep(0.01)
    return {state.id: state for state in states}


async def test_every_adapter_is_loaded_again_with_its_revision_and_pin(
    followed: Service, admin: httpx.AsyncClient, engine: ScriptedEngine, order: Order
) -> None:
    first, second = order("first"), order("second")
    assert await load(admin, first) == await load(admin, second, "acme.b", pinned=True) == 200
    engine.begin_again("another")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    at_once = {state.id: state.state for state in followed.adapters.states()}
    states = await settled(followed)

    assert at_once == {"acme.a": "Loading", "acme.b": "Loading"}
    assert [(s.revision, s.state, s.pinned) for s in (states["acme.a"], states["acme.b"])] == [
        (first["revision"], "Ready", False),
        (second["revision"], "Ready", True),
    ]
    assert followed.incarnation == "another"


async def test_a_pin_that_was_changed_later_is_kept_and_a_deleted_adapter_stays_away(
    followed: Service, admin: httpx.AsyncClient, engine: ScriptedEngine, order: Order
) -> None:
    kept, gone = order("kept"), order("gone")
    assert await load(admin, kept) == await load(admin, gone, "acme.gone") == 200
    assert await load(admin, kept, pinned=True) == 200
    assert (await admin.delete("/admin/adapters/acme.gone")).status_code == 204
    engine.begin_again("another")
    await asyncio.sleep(0.01)
    states = await settled(followed)

    assert {name: state.pinned for name, state in states.items()} == {"acme.a": True}


async def test_an_adapter_that_is_damaged_by_now_fails_alone_and_a_new_order_mends_it(
    followed: Service, admin: httpx.AsyncClient, engine: ScriptedEngine, order: Order, tmp_path: Path
) -> None:
    bad, good = order("bad"), order("good")
    assert await load(admin, bad, "acme.bad") == await load(admin, good) == 200
    (tmp_path / "bad" / "adapter_model.safetensors").write_text("other bytes")
    engine.begin_again("another")
    await asyncio.sleep(0.01)
    states = await settled(followed)

    assert (states["acme.bad"].state, states["acme.bad"].reason) == ("Failed", "FetchFailed")
    assert "adapter_model.safetensors" in states["acme.bad"].message
    assert states["acme.a"].state == "Ready"
    shutil.rmtree(tmp_path / "bad")
    assert await load(admin, order("bad"), "acme.bad") == 200
    assert [load.adapter for load in engine.loads].count("acme.bad") == 1


async def test_an_order_that_was_with_the_dead_engine_is_told_to_the_next(
    followed: Service, admin: httpx.AsyncClient, engine: ScriptedEngine, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "load_adapter", lambda message: None)  # this engine dies before it says anything
    waiting = asyncio.create_task(load(admin, order("first")))
    await asyncio.sleep(0.05)
    monkeypatch.undo()
    engine.begin_again("another")

    assert await waiting == 200


async def test_a_newer_revision_comes_after_the_one_it_replaces(
    followed: Service, admin: httpx.AsyncClient, engine: ScriptedEngine, order: Order
) -> None:
    old, new = order("old"), order("new")
    assert await load(admin, old) == 200
    engine.begin_again("another")
    newer = asyncio.create_task(load(admin, new))
    assert await newer == 200
    states = await settled(followed)

    assert states["acme.a"].revision == new["revision"]
    assert [message.revision for message in engine.loads] == [old["revision"], new["revision"]]


async def test_engines_that_die_one_after_the_other_lose_nothing(
    followed: Service, admin: httpx.AsyncClient, engine: ScriptedEngine, order: Order
) -> None:
    assert await load(admin, order("first")) == 200
    for life in range(5):
        engine.begin_again(f"life {life}")
        await asyncio.sleep(0.001 * life)

    assert (await settled(followed))["acme.a"].state == "Ready"
