from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorafleet_runtime.admin import create_admin_app
from lorafleet_runtime.artifacts import read_folder, revision_of
from lorafleet_runtime.protocol import AddRequest, Sampling
from lorafleet_runtime.scripted_engine import ScriptedEngine
from lorafleet_runtime.service import Service, Settings

PATH = "/admin/adapters/acme.pirate"


@pytest.fixture
async def admin(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_admin_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
        yield client


def folder_of(tmp_path: Path, content: str) -> Path:
    folder = tmp_path / content
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(content)
    (folder / "adapter_model.safetensors").write_text(content)
    return folder


def order(folder: Path, **changes: Any) -> dict[str, Any]:
    files = read_folder(folder)
    described = [{"name": f.name, "url": f.url, "sha256": f.sha256, "size": f.size} for f in files]
    return {"revision": revision_of(files), "files": described, **changes}


@pytest.fixture
def first(tmp_path: Path) -> dict[str, Any]:
    return order(folder_of(tmp_path, "first"))


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
    tmp_path: Path,
) -> None:
    good = dict(first)
    if changes.get("files") == "gone":
        first = order(folder_of(tmp_path, "gone"))
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
    engine.holding.clear()
    engine.open([AddRequest("r", [1], Sampling(max_tokens=1), "acme.pirate")])
    draining = await admin.delete(PATH)
    state = await adapters(admin)
    engine.holding.set()
    await asyncio.sleep(0.01)
    gone = await admin.delete(PATH)

    assert (draining.status_code, draining.json()["state"]) == (202, "Draining")
    assert state == [("acme.pirate", "Draining", "")]
    assert gone.status_code == 204


async def test_older_epochs_are_refused_and_newer_ones_remembered(
    admin: httpx.AsyncClient, first: dict[str, Any]
) -> None:
    calls = []
    for epoch in ("3", "2", "3", "7", "3"):
        calls.append(await admin.put(PATH, json=first, headers={"Lorafleet-Epoch": epoch}))
    without = await admin.delete(PATH)
    malformed = await admin.delete(PATH, headers={"Lorafleet-Epoch": "new"})
    drain = await admin.post("/admin/drain", headers={"Lorafleet-Epoch": "6"})

    assert [call.status_code for call in calls] == [202, 409, 202, 202, 409]
    assert calls[1].json()["error"]["code"] == "stale_epoch"
    assert [without.status_code, malformed.status_code, drain.status_code] == [409, 400, 409]
    assert (await admin.get("/admin/state")).json()["epoch"] == 7


async def test_state_has_a_tag_that_changes_with_it(
    admin: httpx.AsyncClient, engine: ScriptedEngine, first: dict[str, Any]
) -> None:
    tag = (await admin.get("/admin/state")).headers["etag"]
    same = await admin.get("/admin/state", headers={"If-None-Match": tag})
    await admin.put(PATH, json=first)
    changed = await admin.get("/admin/state", headers={"If-None-Match": tag})

    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", tag)
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


async def test_state_is_the_contracts_document(
    admin: httpx.AsyncClient, service: Service, first: dict[str, Any]
) -> None:
    await admin.put(PATH, params={"wait": 5}, json=first | {"pinned": True})
    state = (await admin.get("/admin/state")).json()

    assert (state["version"], state["incarnation"], state["phase"]) == (1, service.incarnation, "Ready")
    assert state["model"] == {
        "servedName": "tiny",
        "architecture": "llama",
        "dtype": "float32",
        "maxModelLen": 256,
        "maxRank": 64,
        "parameters": 1000,
    }
    assert set(state["pages"]) == {"total", "free", "kv", "adapters", "evictable", "bytes"}
    assert set(state["load"]) == {"running", "waiting", "waitingTokens", "stepSeconds", "outputTokensPerSecond"}
    assert set(state["adapters"][0]) == {
        "id", "revision", "state", "reason", "message", "rank", "pages", "bytes", "resident", "pinned",
        "running", "waiting",
    }  # fmt: skip


async def test_draining_shows_in_the_phase(admin: httpx.AsyncClient, service: Service) -> None:
    response = await admin.post("/admin/drain")

    assert response.status_code == 202
    assert service.draining
    assert (await admin.get("/admin/state")).json()["phase"] == "Draining"


@pytest.mark.parametrize(
    ("path", "changes", "param"),
    [
        ("/admin/adapters/acme.pirate", {"revision": "latest"}, "revision"),
        ("/admin/adapters/acme.pirate", {"files": []}, "files"),
        ("/admin/adapters/acme.pirate", {"colour": "red"}, "colour"),
        ("/admin/adapters/acme.pirate?wait=soon", {}, "wait"),
        ("/admin/adapters/acme.pirate?wait=-1", {}, "wait"),
        ("/admin/adapters/-x", {}, "id"),
        ("/admin/adapters/tiny", {}, "id"),
    ],
)
async def test_orders_that_make_no_sense_are_a_400(
    admin: httpx.AsyncClient, first: dict[str, Any], path: str, changes: dict[str, Any], param: str
) -> None:
    response = await admin.put(path, json=first | changes)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_the_admin_token_guards_everything_but_health(service: Service) -> None:
    service.settings = Settings("tiny", admin_token="0perator")
    transport = httpx.ASGITransport(create_admin_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as admin:
        refused = [
            await admin.get("/admin/state"),
            await admin.put(PATH, json={}),
            await admin.delete(PATH),
            await admin.post("/admin/drain"),
            await admin.post("/v1/load_lora_adapter", json={}),
            await admin.post("/v1/unload_lora_adapter", json={}),
        ]
        allowed = await admin.get("/admin/state", headers={"Authorization": "Bearer 0perator"})
        health = await admin.get("/health")

    assert [response.status_code for response in refused] == [401] * 6
    assert (allowed.status_code, health.status_code) == (200, 200)


async def test_vllms_calls_answer_with_vllms_texts(admin: httpx.AsyncClient, tmp_path: Path) -> None:
    body = {"lora_name": "sql", "lora_path": str(folder_of(tmp_path, "sql"))}
    loaded = await admin.post("/v1/load_lora_adapter", json=body)
    again = await admin.post("/v1/load_lora_adapter", json=body)
    in_place = await admin.post("/v1/load_lora_adapter", json=body | {"load_inplace": True})
    unloaded = await admin.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})
    unknown = await admin.post("/v1/unload_lora_adapter", json={"lora_name": "sql"})
    nameless = await admin.post("/v1/load_lora_adapter", json={"lora_path": "x"})
    nowhere = await admin.post("/v1/load_lora_adapter", json={"lora_name": "a", "lora_path": "/nowhere"})

    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
    assert again.status_code == 400
    assert "The lora adapter 'sql' has already been loaded." in again.json()["error"]["message"]
    assert in_place.status_code == 200
    assert (unloaded.status_code, unloaded.text) == (200, "Success: LoRA adapter 'sql' removed successfully.")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["message"] == "The lora adapter 'sql' cannot be found."
    assert nameless.status_code == 400
    assert nameless.json()["error"]["message"] == "Both 'lora_name' and 'lora_path' must be provided."
    assert nowhere.status_code == 404


async def test_a_newer_revision_replaces_one_that_is_still_being_fetched(
    admin: httpx.AsyncClient, engine: ScriptedEngine, first: dict[str, Any], tmp_path: Path
) -> None:
    second = order(folder_of(tmp_path, "second"))
    old = asyncio.create_task(admin.put(PATH, params={"wait": 5}, json=first))
    await asyncio.sleep(0)
    new = await admin.put(PATH, params={"wait": 5}, json=second)
    replaced = await old

    assert new.status_code == 200
    assert replaced.status_code in (200, 409)
    assert [a["revision"] for a in (await admin.get("/admin/state")).json()["adapters"]] == [second["revision"]]
