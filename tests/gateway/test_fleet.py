from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from lorafleet_gateway.fleet import FleetFolder
from tests.gateway.gateway_kit import KEY, adapter, fleet_document, placement, tenant, write

FLEET = "models.smol.json"
TENANTS = {"version": 1, "generation": 1, "tenants": [tenant("acme", KEY)]}


def document(generation: int = 1, replicas: int = 1) -> dict[str, Any]:
    rows = [{"name": f"r{i}", "url": f"http://r{i}", "state": "Ready"} for i in range(replicas)]
    return fleet_document(rows, [adapter("acme.pirate", [placement("r0")])], generation)


@pytest.fixture
def source(tmp_path: Path) -> FleetFolder:
    write(tmp_path, FLEET, document())
    write(tmp_path, "tenants.json", TENANTS)
    made = FleetFolder(tmp_path)
    made.refresh()
    return made


def replicas(source: FleetFolder) -> int:
    part = source.fleet.base(("models", "smol"))
    return len(part.replicas) if part else -1


def test_a_gateway_is_ready_when_it_has_read_tenants_and_a_base_model(tmp_path: Path) -> None:
    source = FleetFolder(tmp_path)
    ready = []
    for name, text in ((None, None), ("tenants.json", TENANTS), (FLEET, document())):
        if name:
            write(tmp_path, name, text)
        source.refresh()
        ready.append(source.ready)

    assert ready == [False, False, True]


async def test_a_fleet_of_no_base_models_is_ready_once_its_source_has_told_so(tmp_path: Path) -> None:
    told: list[bool] = []
    source = FleetFolder(tmp_path, poll_seconds=0.01, told_all=lambda: bool(told))
    write(tmp_path, "tenants.json", TENANTS)
    watch = asyncio.create_task(source.watch())
    await asyncio.sleep(0.1)
    before = source.ready
    told.append(True)
    await asyncio.sleep(0.1)
    watch.cancel()

    assert (before, source.ready) == (False, True)


def test_nothing_is_read_again_that_has_not_changed(source: FleetFolder) -> None:
    before = source.fleet

    assert not source.refresh()
    assert source.fleet is before


def test_a_replaced_document_is_taken(source: FleetFolder, tmp_path: Path) -> None:
    write(tmp_path, FLEET, document(2, replicas=3))

    assert source.refresh()
    assert replicas(source) == 3


def test_a_lower_generation_is_taken_as_written_and_said(source: FleetFolder, tmp_path: Path) -> None:
    write(tmp_path, FLEET, document(9))
    source.refresh()
    write(tmp_path, FLEET, document(1, replicas=2))
    with capture_logs() as lines:
        source.refresh()

    assert replicas(source) == 2
    assert [(line["before"], line["after"]) for line in lines if line["log_level"] == "warning"] == [(9, 1)]


def test_a_tenant_without_a_weight_to_divide_by_leaves_the_last_good_document(
    source: FleetFolder, tmp_path: Path
) -> None:
    before = source.tenants.by_name
    write(tmp_path, "tenants.json", {"version": 1, "generation": 9, "tenants": [{"name": "acme", "weight": 0}]})
    with capture_logs() as lines:
        source.refresh()

    assert source.tenants.by_name == before
    assert ["$.tenants[0].weight" in line["problem"] for line in lines] == [True]


@pytest.mark.parametrize("broken", ["", "{", '{"version": 7}', "[]", '{"version": 1, "generation": 1}'])
@pytest.mark.parametrize("name", [FLEET, "tenants.json"])
def test_a_broken_document_keeps_the_last_good_one_and_is_logged_once(
    source: FleetFolder, tmp_path: Path, name: str, broken: str
) -> None:
    if name == "tenants.json" and broken.endswith("1}"):
        broken = '{"version": 1}'
    write(tmp_path, name, broken)
    with capture_logs() as lines:
        for _ in range(3):
            source.refresh()

    assert replicas(source) == 1
    assert source.tenants.authenticate(f"Bearer {KEY}") is not None
    assert [line["file"] for line in lines if line["log_level"] == "error"] == [name]


def test_a_mended_document_is_taken_again(source: FleetFolder, tmp_path: Path) -> None:
    write(tmp_path, FLEET, "{")
    source.refresh()
    write(tmp_path, FLEET, document(2, replicas=2))
    source.refresh()

    assert replicas(source) == 2


def test_a_missing_file_is_a_base_model_that_is_gone(source: FleetFolder, tmp_path: Path) -> None:
    (tmp_path / FLEET).unlink()
    source.refresh()

    assert replicas(source) == -1
    assert source.ready


def test_a_missing_tenants_file_lets_nobody_in(source: FleetFolder, tmp_path: Path) -> None:
    (tmp_path / "tenants.json").unlink()
    source.refresh()

    assert source.tenants.authenticate(f"Bearer {KEY}") is None


def test_a_folder_that_is_away_changes_nothing_and_is_logged_once(source: FleetFolder, tmp_path: Path) -> None:
    tmp_path.rename(tmp_path.with_name("away"))
    with capture_logs() as lines:
        for _ in range(3):
            source.refresh()
    tmp_path.with_name("away").rename(tmp_path)

    assert replicas(source) == 1
    assert len(lines) == 1


def test_a_file_that_describes_another_base_model_is_refused(source: FleetFolder, tmp_path: Path) -> None:
    write(tmp_path, "models.other.json", document())
    with capture_logs() as lines:
        source.refresh()

    assert "name the file models.smol.json" in lines[0]["problem"]
    assert len(source.fleet.bases) == 1


def test_files_that_are_not_documents_are_left_alone(source: FleetFolder, tmp_path: Path) -> None:
    for name in ("README", ".hidden.json", "..data"):
        (tmp_path / name).write_text("{")
    with capture_logs() as lines:
        assert not source.refresh()

    assert lines == []


def test_a_config_maps_symlinks_are_followed(tmp_path: Path) -> None:
    for version in (1, 2):
        (tmp_path / f"..v{version}").mkdir()
        write(tmp_path / f"..v{version}", FLEET, document(version, replicas=version))
    (tmp_path / "..data").symlink_to("..v1")
    (tmp_path / FLEET).symlink_to(f"..data/{FLEET}")
    source = FleetFolder(tmp_path)
    source.refresh()
    (tmp_path / "..new").symlink_to("..v2")
    os.replace(tmp_path / "..new", tmp_path / "..data")
    source.refresh()

    assert replicas(source) == 2


async def test_a_change_is_seen_within_a_quarter_second_and_wakes_who_waits(
    source: FleetFolder, tmp_path: Path
) -> None:
    heard: list[int] = []
    source.on_change.append(lambda: heard.append(replicas(source)))
    watching = asyncio.create_task(source.watch())
    waiting = asyncio.create_task(source.wait_changed(5.0))
    await asyncio.sleep(0)

    started = time.monotonic()
    write(tmp_path, FLEET, document(2, replicas=2))
    await waiting
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)

    assert time.monotonic() - started < 0.5
    assert heard == [2]
