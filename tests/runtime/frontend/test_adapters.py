from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorafleet_runtime.frontend.scripted_engine import ScriptedEngine
from lorafleet_runtime.protocol import AddRequest, Sampling

PATH = "/admin/adapters/acme.pirate"


async def adapters(admin: httpx.AsyncClient) -> list[tuple[str, str, str]]:
    body = (await admin.get("/admin/state")).json()
    return [(a["id"], a["state"], a["reason"]) for a in body["adapters"]]


async def test_put_with_wait_answers_with_the_outcome(
    admin: httpx.AsyncClient, engine: ScriptedEngine, first: dict[str, Any], tmp_path: Path
) -> None:
    response = await admin.put(PATH, params={"wait": 5}, json=first)

    assert response.status_code == 200
    assert response.json() == {
        "id": "acme.pirate",
        "revision": first["revision"],
        "state": "Ready",
        "rank": 8,
        "pages": 2,
        "bytes": 512,
        "targets": [],
    }
    assert engine.loads[0].folder == str(tmp_path / "first")


async def test_put_without_wait_answers_at_once(admin: httpx.AsyncClient, first: dict[str, Any]) -> None:
    response = await admin.put(PATH, json=first)
    at_once = await adapters(admin)
    later = await admin.put(PATH, params={"wait": 5}, json=first)

    assert response.status_code == 202
    assert response.json() == {"id": "acme.pirate", "revision": first["revision"], "state": "Loading"}
    assert at_once == [("acme.pirate", "Loading", "")]
    assert later.json()["state"] == "Ready"


async def test_put_is_idempotent_by_revision(
    admin: httpx.AsyncClient, engine: ScriptedEngine, first: dict[str, Any]
) -> None:
    answers = [admin.put(PATH, params={"wait": 5}, json=first) for _ in range(4)]
    codes = [response.status_code for response in await asyncio.gather(*answers)]

    assert codes == [200] * 4
    assert [load.folder for load in engine.loads if load.folder] == [engine.loads[0].folder]
    assert await adapters(admin) == [("acme.pirate", "Ready", "")]


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        ("InvalidAdapter", 422, "invalid_adapter"),
        ("RankTooHigh", 422, "rank_too_high"),
        ("NoRoom", 507, "no_room"),
    ],
)
async def test_what_the_engine_refuses_is_told_and_kept(
    admin: httpx.AsyncClient,
    engine: ScriptedEngine,
    first: dict[str, Any],
    reason: str,
    status: int,
    code: str,
) -> None:
    engine.failures["acme.pirate"] = (reason, "because of layer 3")
    response = await admin.put(PATH, params={"wait": 5}, json=first)

    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert response.json()["error"]["message"] == "because of layer 3"
    assert await adapters(admin) == [("acme.pirate", "Failed", reason)]


async def test_a_failed_revision_is_tried_again_by_the_next_put(
    admin: httpx.AsyncClient, engine: ScriptedEngine, first: dict[str, Any]
) -> None:
    engine.failures["acme.pirate"] = ("NoRoom", "full")
    assert (await admin.put(PATH, params={"wait": 5}, json=first)).status_code == 507
    assert (await admin.put(PATH, params={"wait": 5}, json=first)).status_code == 507
    engine.failures.clear()

    assert (await admin.put(PATH, params={"wait": 5}, json=first)).status_code == 200


@pytest.mark.parametrize(
    ("changes", "status", "code", "reason"),
    [
        ({"revision": "sha256:" + "0" * 64}, 409, "digest_mismatch", "DigestMismatch"),
        ({"files": "gone"}, 502, "fetch_failed", "FetchFailed"),
        ({"files": "pickle"}, 422, "invalid_adapter", "InvalidAdapter"),
    ],
)
async def test_what_cannot_be_fetched_is_told_and_kept_until_the_next_order(
    admin: httpx.AsyncClient,
    first: dict[str, Any],
    changes: dict[str, Any],
    status: int,
    code: str,
    reason: str,
    order: Callable[[str], dict[str, Any]],
    tmp_path: Path,
) -> None:
    good = dict(first)
    if changes.get("files") == "gone":
        first = order("gone")
        (tmp_path / "gone" / "adapter_config.json").unlink()
    elif changes.get("files") == "pickle":
        first["files"] = [*first["files"], {**first["files"][0], "name": "adapter_model.bin"}]
    else:
        first |= changes
    response = await admin.put(PATH, params={"wait": 5}, json=first)

    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert await adapters(admin) == [("acme.pirate", "Failed", reason)]
    assert (await admin.put(PATH, params={"wait": 5}, json=good)).status_code == 200
    assert await adapters(admin) == [("acme.pirate", "Ready", "")]


async def test_delete_forgets_failures_and_what_never_was(admin: httpx.AsyncClient, first: dict[str, Any]) -> None:
    first["revision"] = "sha256:" + "0" * 64
    await admin.put(PATH, params={"wait": 5}, json=first)

    assert (await admin.delete(PATH)).status_code == 204
    assert await adapters(admin) == []
    assert (await admin.delete("/admin/adapters/acme.never")).status_code == 204


async def test_delete_drains_while_requests_hold_the_adapter(
    admin: httpx.AsyncClient, engine: ScriptedEngine, first: dict[str, Any]
) -> None:
    await admin.put(PATH, params={"wait": 5}, json=first)
    engine.hold()
    engine.open([AddRequest("r", [1], Sampling(max_tokens=1), "acme.pirate")])
    draining = await admin.delete(PATH)
    state = await adapters(admin)
    engine.go_on()
    await asyncio.sleep(0.01)
    gone = await admin.delete(PATH)

    assert (draining.status_code, draining.json()["state"]) == (202, "Draining")
    assert state == [("acme.pirate", "Draining", "")]
    assert gone.status_code == 204


async def test_a_newer_revision_replaces_one_that_is_still_being_fetched(
    admin: httpx.AsyncClient, engine: ScriptedEngine, first: dict[str, Any], order: Callable[[str], dict[str, Any]]
) -> None:
    second = order("second")
    old = asyncio.create_task(admin.put(PATH, params={"wait": 5}, json=first))
    await asyncio.sleep(0)
    new = await admin.put(PATH, params={"wait": 5}, json=second)
    replaced = await old

    assert new.status_code == 200
    assert replaced.status_code in (200, 409)
    assert [a["revision"] for a in (await admin.get("/admin/state")).json()["adapters"]] == [second["revision"]]


async def test_a_pin_that_leaves_no_full_context_is_refused_and_changes_nothing(
    admin: httpx.AsyncClient, engine: ScriptedEngine, order: Callable[[str], dict[str, Any]]
) -> None:
    """The scripted pool has 100 pages, a context takes 16, an adapter 2: so 42 of them may be pinned."""
    orders = {f"acme.a{i}": order(f"a{i}") for i in range(43)}
    for adapter, body in orders.items():
        await admin.put(f"/admin/adapters/{adapter}", params={"wait": 5}, json=body)
    pins = [
        await admin.put(f"/admin/adapters/{adapter}", params={"wait": 5}, json=body | {"pinned": True})
        for adapter, body in orders.items()
    ]

    assert [response.status_code for response in pins] == [200] * 42 + [507]
    assert "needs 2 pages (8192 bytes); of the pool's 100 pages, 0 (0 bytes) are left" in pins[-1].text
    await asyncio.sleep(0.01)
    assert sum(state.pinned for state in engine.state.adapters) == 42
