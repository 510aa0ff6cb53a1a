from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorafleet_runtime.frontend.admin import create_admin_app
from lorafleet_runtime.frontend.scripted_engine import ScriptedEngine
from lorafleet_runtime.frontend.service import Service, Settings

PATH = "/admin/adapters/acme.pirate"


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
    assert set(state["pages"]) == {"total", "free", "kv", "adapters", "prefixes", "evictable", "bytes"}
    assert set(state["host"]) == {"budget", "used"}
    assert set(state["load"]) == {"running", "waiting", "waitingTokens", "stepSeconds", "outputTokensPerSecond"}
    assert set(state["adapters"][0]) == {
        "id", "revision", "state", "reason", "message", "rank", "pages", "bytes", "resident", "level",
        "evictedFor", "pinned", "running", "waiting",
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


@pytest.mark.parametrize("field", ["url", "authorization"])
async def test_a_credential_that_is_refused_is_not_repeated(
    admin: httpx.AsyncClient, first: dict[str, Any], field: str
) -> None:
    files = [{**first["files"][0], field: "s3cret\n" * 200_000}]
    response = await admin.put(PATH, json=first | {"files": files})

    assert response.status_code == 400
    assert f"files[0].{field}" in response.text
    assert "s3cret" not in response.text


async def test_the_admin_token_guards_everything_but_health(service: Service) -> None:
    service.settings = Settings("tiny", admin_token="0perator")
    transport = httpx.ASGITransport(create_admin_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin") as admin:
        refused = [
            await admin.get("/admin/state"),
            await admin.put(PATH, json={}),
            await admin.delete(PATH),
            await admin.post("/admin/drain"),
            await admin.post("/admin/artifacts/describe", json={"path": "weights/pirate"}),
            await admin.post("/v1/load_lora_adapter", json={}),
            await admin.post("/v1/unload_lora_adapter", json={}),
        ]
        allowed = await admin.get("/admin/state", headers={"Authorization": "Bearer 0perator"})
        health = await admin.get("/health")

    assert [response.status_code for response in refused] == [401] * 7
    assert (allowed.status_code, health.status_code) == (200, 200)


async def test_vllms_calls_answer_with_vllms_texts(
    admin: httpx.AsyncClient, order: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    order("sql")
    body = {"lora_name": "sql", "lora_path": str(tmp_path / "sql")}
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
