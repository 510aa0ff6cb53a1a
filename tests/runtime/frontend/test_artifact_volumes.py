"""Folders of mounted volumes, described for an operator that cannot see them."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import httpx
import pytest

from lorafleet_runtime.errors import ApiError
from lorafleet_runtime.frontend.artifact_files import revision_of
from lorafleet_runtime.frontend.artifact_volumes import ArtifactVolumes
from lorafleet_runtime.frontend.artifacts import ArtifactStore
from lorafleet_runtime.frontend.service import Service

CONTENT = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": b"weights"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save(tmp_path / "artifacts" / "weights" / "team" / "pirate")
    return tmp_path / "artifacts"


def save(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    return folder


async def refusal(root: Path, path: str) -> ApiError:
    with pytest.raises(ApiError) as error:
        await ArtifactVolumes(root).describe(path)
    return error.value


async def test_a_folder_is_its_two_files_with_digests_and_urls_that_can_be_loaded(root: Path, tmp_path: Path) -> None:
    files = await ArtifactVolumes(root).describe("weights/team/pirate")
    assert files is not None
    assert [(f.name, f.size, f.sha256) for f in files] == [
        (name, len(content), hashlib.sha256(content).hexdigest()) for name, content in CONTENT.items()
    ]
    folder = root / "weights" / "team" / "pirate"
    assert await ArtifactStore(tmp_path / "cache").fetch(revision_of(files), files) == folder


async def test_a_file_is_read_again_only_when_it_changed(root: Path) -> None:
    volumes = ArtifactVolumes(root)
    first = await volumes.describe("weights/team/pirate")
    assert await volumes.describe("weights/team/pirate") == first
    assert volumes.reads == 2
    weights = root / "weights" / "team" / "pirate" / "adapter_model.safetensors"
    weights.write_bytes(b"trained longer")
    second = await volumes.describe("weights/team/pirate")
    assert (second != first, volumes.reads) == (True, 3)


async def test_what_takes_long_is_read_on_and_had_later(root: Path) -> None:
    volumes = ArtifactVolumes(root)
    assert await volumes.describe("weights/team/pirate", wait=0.0) is None
    async with asyncio.timeout(5):
        while await volumes.describe("weights/team/pirate") is None:
            continue
    assert volumes.reads == 2


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("other/team/pirate", 404, "no volume 'other'"),
        ("weights/nobody", 404, "weights"),
        ("weights/team", 404, "adapter_config.json and adapter_model.safetensors"),
        ("weights/../weights/team/pirate", 400, "VOLUME/PATH"),
        ("/etc", 400, "VOLUME/PATH"),
        ("weights/out", 400, "leads out of its volume"),
        ("weights/linked", 400, "leads out of its volume"),
        ("weights/old", 422, "pickle"),
    ],
)
async def test_what_is_not_there_or_lies_elsewhere_is_refused(
    root: Path, tmp_path: Path, path: str, status: int, words: str
) -> None:
    os.symlink(save(tmp_path / "private"), root / "weights" / "out")
    linked = save(root / "weights" / "linked")
    (linked / "adapter_config.json").unlink()
    os.symlink("/etc/passwd", linked / "adapter_config.json")
    (root / "weights" / "old").mkdir()
    for name in ("adapter_config.json", "adapter_model.bin"):
        (root / "weights" / "old" / name).touch()
    error = await refusal(root, path)
    assert (error.status, words in error.message) == (status, True), error.message


async def test_links_within_a_volume_are_followed(root: Path) -> None:
    os.symlink("team", root / "weights" / "latest")
    assert await ArtifactVolumes(root).describe("weights/latest/pirate") is not None


async def test_the_admin_port_describes_and_says_what_is_wrong(
    admin: httpx.AsyncClient, service: Service, root: Path
) -> None:
    service.volumes = ArtifactVolumes(root)
    found = await admin.post("/admin/artifacts/describe", json={"path": "weights/team/pirate"})
    missing = await admin.post("/admin/artifacts/describe", json={"path": "weights/x"})

    assert found.status_code == 200
    assert [set(file) for file in found.json()["files"]] == [{"name", "url", "sha256", "size"}] * 2
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
