"""The mirror follows an API server that misbehaves. The well-behaved one is the real one, in tests/cluster."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from lorafleet_gateway.errors import ConfigError
from lorafleet_gateway.mirror import ApiAccess, Mirror, access


class FaultyApi:
    """Lists what `objects` holds; `events` are what the next watches tell, each ended by the server."""

    def __init__(self) -> None:
        self.objects: dict[str, list[dict[str, Any]]] = {"configmaps": [], "secrets": []}
        self.events: list[dict[str, Any]] = []
        self.lists = 0
        self.refuse = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        resource = request.match_info["resource"]
        if self.refuse:
            return web.Response(status=503)
        if "watch" not in request.query:
            self.lists += resource == "configmaps"
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": self.objects[resource]})
        response = web.StreamResponse()
        await response.prepare(request)
        events, self.events = (self.events, []) if resource == "configmaps" else ([], self.events)
        for event in events:
            await response.write(json.dumps(event).encode() + b"\n")
        await asyncio.sleep(0.05)
        return response


def carrying(name: str, document: dict[str, Any], field: str = "binaryData") -> dict[str, Any]:
    data = base64.b64encode(gzip.compress(json.dumps(document).encode())).decode()
    return {"metadata": {"name": name, "resourceVersion": "2"}, field: {"document.json.gz": data}}


def fleet(name: str, generation: int = 1) -> dict[str, Any]:
    return carrying(f"f-{name}", {"generation": generation, "baseModel": {"namespace": "models", "name": name}})


@pytest.fixture
async def api() -> AsyncIterator[tuple[FaultyApi, str]]:
    faulty = FaultyApi()
    app = web.Application()
    app.router.add_get("/api/v1/namespaces/home/{resource}", faulty.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield faulty, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def mirror(api: tuple[FaultyApi, str], tmp_path: Path) -> AsyncIterator[Mirror]:
    import certifi

    (tmp_path / "token").write_text("t")
    (tmp_path / "ca.crt").write_bytes(Path(certifi.where()).read_bytes())
    (tmp_path / "fleet").mkdir()
    mirror = Mirror(ApiAccess(api[1], tmp_path / "token", tmp_path / "ca.crt", "home"), tmp_path / "fleet")
    task = asyncio.create_task(mirror.run())
    yield mirror
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def folder(mirror: Mirror, tmp_path: Path) -> Path:
    return tmp_path / "fleet"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.json"))


async def test_listed_documents_become_files_and_files_of_gone_ones_go(
    api: tuple[FaultyApi, str], folder: Path
) -> None:
    (folder / "models.old.json").write_text("{}")
    api[0].objects["configmaps"] = [fleet("tiny")]
    api[0].objects["secrets"] = [carrying("lorafleet-tenants", {"tenants": []}, "data")]
    await until(lambda: names(folder) == ["models.tiny.json", "tenants.json"])
    assert (folder / "tenants.json").stat().st_mode & 0o077 == 0


async def test_events_change_and_remove_files(api: tuple[FaultyApi, str], folder: Path) -> None:
    api[0].objects["configmaps"] = [fleet("tiny"), fleet("other")]
    api[0].events = [{"type": "MODIFIED", "object": fleet("tiny", 7)}, {"type": "DELETED", "object": fleet("other")}]
    await until(lambda: names(folder) == ["models.tiny.json"])
    assert json.loads((folder / "models.tiny.json").read_text())["generation"] == 7


async def test_a_fleet_without_base_models_is_known_once_it_has_been_listed(
    api: tuple[FaultyApi, str], mirror: Mirror, folder: Path
) -> None:
    api[0].refuse = True
    await asyncio.sleep(0.1)
    before = mirror.listed
    api[0].refuse = False
    await until(lambda: mirror.listed)
    assert (before, names(folder)) == (False, [])


async def test_an_expired_version_leads_to_a_new_list(api: tuple[FaultyApi, str], folder: Path) -> None:
    api[0].events = [{"type": "ERROR", "object": {"code": 410}}]
    await until(lambda: api[0].lists >= 2)
    assert folder.exists()


async def test_an_api_server_that_is_away_takes_nothing_away(api: tuple[FaultyApi, str], folder: Path) -> None:
    api[0].objects["configmaps"] = [fleet("tiny")]
    await until(lambda: names(folder) == ["models.tiny.json"])
    api[0].refuse = True
    api[0].objects["configmaps"] = []
    await asyncio.sleep(1.0)
    assert names(folder) == ["models.tiny.json"]


async def test_an_object_without_a_readable_document_harms_no_other(api: tuple[FaultyApi, str], folder: Path) -> None:
    broken = {"metadata": {"name": "f-broken", "resourceVersion": "2"}, "binaryData": {"document.json.gz": "bm8="}}
    api[0].objects["configmaps"] = [broken, fleet("tiny")]
    await until(lambda: names(folder) == ["models.tiny.json"])


def test_outside_a_cluster_the_flag_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pod"):
        access("home", {"LORAFLEET_KUBE_ACCOUNT": str(tmp_path)})
