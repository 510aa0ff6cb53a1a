"""Artifacts that do not fit on the disk: a real, small file system, filled for real."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from lorafleet_runtime.errors import ArtifactError
from lorafleet_runtime.frontend.artifact_files import ArtifactFile, revision_of
from lorafleet_runtime.frontend.artifacts import ArtifactStore

DISK = 4 << 20
CONFIG = b'{"r": 8}'


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "lorafleet-test", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root and its privileges")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
async def origin() -> AsyncIterator[str]:
    """Serves /NAME/SIZE: so many zeros, block by block, so that fetches overlap."""

    async def serve(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        left = len(CONFIG) if request.match_info["name"].endswith(".json") else int(request.match_info["size"])
        content = CONFIG if left == len(CONFIG) else bytes(left)
        with contextlib.suppress(ConnectionError):
            for start in range(0, left, 1 << 18):
                await response.write(content[start : start + (1 << 18)])
                await asyncio.sleep(0.001)
        return response

    app = web.Application()
    app.router.add_get("/{name}/{size}", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    await runner.cleanup()


def adapter(url: str, size: int) -> list[ArtifactFile]:
    """An adapter whose weights are `size` zeros."""
    config, weights = "adapter_config.json", "adapter_model.safetensors"
    return [
        ArtifactFile(config, f"{url}/{config}/{size}", _digest(CONFIG), len(CONFIG)),
        ArtifactFile(weights, f"{url}/{weights}/{size}", _digest(bytes(size)), size),
    ]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def refusal(store: ArtifactStore, files: list[ArtifactFile]) -> ArtifactError:
    with pytest.raises(ArtifactError) as error:
        await store.fetch(revision_of(files), files)
    return error.value


async def test_what_cannot_fit_is_refused_before_a_byte_is_fetched_with_both_numbers(disk: Path, origin: str) -> None:
    files = adapter("http://127.0.0.1:1", 5_000_000)  # nobody listens there
    error = await refusal(ArtifactStore(disk / "cache"), files)

    assert error.code == "disk_full"
    assert f"{disk / 'cache'}: 5000008 bytes are needed and {DISK} are free" in error.message


@pytest.mark.parametrize("local", [False, True])
async def test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind_and_a_retry_works(
    disk: Path, origin: str, tmp_path: Path, local: bool
) -> None:
    size, hog = 3_000_000, disk / "hog"
    files = adapter(origin, size)
    if local:
        (tmp_path / "weights").write_bytes(bytes(size))
        weights = ArtifactFile(files[1].name, (tmp_path / "weights").as_uri(), files[1].sha256, size)
        files = [files[0], weights]
    store = ArtifactStore(disk / "cache")
    fetch = asyncio.create_task(refusal(store, files))
    while not list(disk.glob("cache/partial-*/*")):  # it found room, and has begun
        await asyncio.sleep(0)
    hog.write_bytes(bytes(3_000_000))
    error = await fetch

    assert error.code == "disk_full"
    assert re.search(rf"{disk}/cache: {size + len(CONFIG)} bytes are needed and \d+ are free", error.message)
    assert list((disk / "cache").iterdir()) == []
    hog.unlink()
    folder = await store.fetch(revision_of(files), files)
    assert (folder / "adapter_model.safetensors").stat().st_size == size


async def test_one_that_is_too_large_does_not_take_the_disk_from_those_that_fit(disk: Path, origin: str) -> None:
    store = ArtifactStore(disk / "cache")
    small = [adapter(origin, size) for size in (1_000_000, 1_000_001)]
    large = adapter(origin, 2_500_000)
    fits = [asyncio.create_task(store.fetch(revision_of(files), files)) for files in small]
    while len(list(disk.glob("cache/partial-*"))) < 2:
        await asyncio.sleep(0)
    error = await refusal(store, large)

    assert error.code == "disk_full"
    assert "for artifacts that are on their way" in error.message
    assert all(folder.is_dir() for folder in await asyncio.gather(*fits))
