from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from aiohttp import web

from lorafleet_runtime.errors import ArtifactError
from lorafleet_runtime.frontend.artifact_files import ArtifactFile, revision_of
from lorafleet_runtime.frontend.artifacts import ArtifactStore, read_folder

CONTENT = {"adapter_config.json": b'{"r": 8}', "adapter_model.safetensors": b"\x00" * 3_000_000}


@dataclass
class Origin:
    """A real HTTP server that counts what it is asked."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    authorization: list[str] = field(default_factory=list)
    elsewhere: str = ""
    content: dict[str, bytes] = field(default_factory=lambda: dict(CONTENT))

    async def serve(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.asked.append(name)
        self.authorization.append(request.headers.get("Authorization", ""))
        if self.elsewhere:
            raise web.HTTPTemporaryRedirect(f"{self.elsewhere}/{name}")
        await asyncio.sleep(0.02)
        if name not in self.content:
            raise web.HTTPNotFound
        return web.Response(body=self.content[name])


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Origin]:
    origin = Origin()
    app = web.Application()
    app.router.add_get("/{name}", origin.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    origin.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    yield origin
    await runner.cleanup()


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with serving() as origin:
        yield origin


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "cache")


def files_at(url: str) -> list[ArtifactFile]:
    return [
        ArtifactFile(name, f"{url}/{name}?signature=s3cret", hashlib.sha256(content).hexdigest(), len(content))
        for name, content in CONTENT.items()
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my adapter"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    return folder


async def refusal(store: ArtifactStore, files: list[ArtifactFile], revision: str | None = None) -> ArtifactError:
    with pytest.raises(ArtifactError) as error:
        await store.fetch(revision or revision_of(files), files)
    assert "s3cret" not in str(error.value)
    return error.value


def test_a_revision_is_the_digest_of_names_and_digests() -> None:
    files = [ArtifactFile("b", "file:///b", "22", 1), ArtifactFile("a", "file:///a", "11", 1)]

    assert revision_of(files) == "sha256:" + hashlib.sha256(b"a 11\nb 22\n").hexdigest()
    assert revision_of(files) == revision_of(files[::-1])


async def test_local_files_are_used_where_they_are(store: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    files = read_folder(folder)

    assert await store.fetch(revision_of(files), files) == folder
    assert not (tmp_path / "cache").exists()


async def test_local_files_under_other_names_are_gathered(store: ArtifactStore, folder: Path) -> None:
    config, weights = read_folder(folder)
    (folder / "other.json").write_bytes(CONTENT["adapter_config.json"])
    moved = replace(config, url=(folder / "other.json").as_uri())
    result = await store.fetch(revision_of([moved, weights]), [moved, weights])

    assert {path.name: path.read_bytes() for path in result.iterdir()} == CONTENT


async def test_remote_files_are_fetched_once_and_kept(store: ArtifactStore, origin: Origin) -> None:
    files = files_at(origin.url)
    first = await store.fetch(revision_of(files), files)
    second = await store.fetch(revision_of(files), files)

    assert first == second
    assert {path.name: path.read_bytes() for path in first.iterdir()} == CONTENT
    assert sorted(origin.asked) == sorted(CONTENT)


async def test_a_header_goes_to_the_urls_host_and_never_to_where_that_redirects(
    store: ArtifactStore, origin: Origin
) -> None:
    files = [replace(file, authorization="Bearer s3cret") for file in files_at(origin.url)]
    async with serving() as other:
        origin.elsewhere = other.url
        await store.fetch(revision_of(files), files)
        assert set(other.authorization) == {""}
    assert set(origin.authorization) == {"Bearer s3cret"}
    assert "s3cret" not in repr(files)


async def test_a_small_file_may_come_in_the_order_itself(store: ArtifactStore, origin: Origin) -> None:
    config, weights = files_at(origin.url)
    inline = replace(config, url="data:;base64," + base64.b64encode(CONTENT[config.name]).decode())
    folder = await store.fetch(revision_of([inline, weights]), [inline, weights])

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert origin.asked == [weights.name]


@pytest.mark.parametrize(
    ("url", "code"),
    [("data:;base64,e30=", "digest_mismatch"), ("data:,{}", "fetch_failed"), ("data:;base64,%%", "fetch_failed")],
)
async def test_inline_content_is_verified_too(store: ArtifactStore, origin: Origin, url: str, code: str) -> None:
    config, weights = files_at(origin.url)
    assert (await refusal(store, [replace(config, url=url), weights])).code == code


async def test_fetches_of_one_revision_share_one_download_even_if_one_gives_up(
    store: ArtifactStore, origin: Origin
) -> None:
    files = files_at(origin.url)
    tasks = [asyncio.create_task(store.fetch(revision_of(files), files)) for _ in range(5)]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks[1:])

    assert len(set(results)) == 1
    assert sorted(origin.asked) == sorted(CONTENT)


def with_one_bit_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [with_one_bit_flipped, Path.unlink, lambda path: os.truncate(path, 5)], ids=["flipped", "gone", "cut"]
)
@pytest.mark.parametrize("name", CONTENT)
async def test_a_damaged_cache_entry_is_fetched_again(
    store: ArtifactStore, origin: Origin, name: str, damage: Callable[[Path], None]
) -> None:
    files = files_at(origin.url)
    folder = await store.fetch(revision_of(files), files)
    damage(folder / name)
    again = await store.fetch(revision_of(files), files)

    assert {path.name: path.read_bytes() for path in again.iterdir()} == CONTENT
    assert len(origin.asked) == 2 * len(CONTENT)


@pytest.mark.parametrize(
    ("content", "words"), [(b'{"r": 9}', "SHA-256"), (b'{"r"', "4 bytes"), (b'{"r": 8}' * 2, "longer")]
)
async def test_content_that_is_not_what_was_announced_is_a_mismatch(
    store: ArtifactStore, origin: Origin, tmp_path: Path, content: bytes, words: str
) -> None:
    origin.content["adapter_config.json"] = content
    error = await refusal(store, files_at(origin.url))

    assert error.code == "digest_mismatch"
    assert "adapter_config.json" in error.message
    assert words in error.message
    assert list((tmp_path / "cache").iterdir()) == []


async def test_a_source_that_fails_is_named_without_its_signature(store: ArtifactStore, origin: Origin) -> None:
    del origin.content["adapter_config.json"]
    missing = await refusal(store, files_at(origin.url))
    unreachable = await refusal(store, files_at("http://127.0.0.1:1"))

    assert (missing.code, unreachable.code) == ("fetch_failed", "fetch_failed")
    assert f"{origin.url}/adapter_config.json answered 404" in missing.message
    assert "http://127.0.0.1:1/adapter_config.json" in unreachable.message


async def test_a_local_file_that_is_gone_or_changed(store: ArtifactStore, folder: Path) -> None:
    files = read_folder(folder)
    (folder / "adapter_config.json").write_bytes(b'{"r": 9}')
    changed = await refusal(store, files)
    (folder / "adapter_config.json").unlink()
    gone = await refusal(store, files)

    assert (changed.code, gone.code) == ("digest_mismatch", "fetch_failed")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adapter_model.bin", "pickle"),
        ("weights.PT", "pickle"),
        ("../adapter_config.json", "plain file name"),
        ("sub/x.json", "plain file name"),
        (".hidden", "plain file name"),
    ],
)
async def test_names_that_must_not_be_loaded(store: ArtifactStore, folder: Path, name: str, words: str) -> None:
    files = [*read_folder(folder), ArtifactFile(name, (folder / "x").as_uri(), "0" * 64, 1)]
    error = await refusal(store, files)

    assert (error.code, words in error.message) == ("invalid_adapter", True)


async def test_both_files_are_needed_and_a_revision_that_fits(store: ArtifactStore, folder: Path) -> None:
    files = read_folder(folder)

    assert "adapter_model.safetensors" in (await refusal(store, files[:1])).message
    assert (await refusal(store, files, "sha256:" + "0" * 64)).code == "digest_mismatch"


@pytest.mark.parametrize("url", ["ftp://host/x", "file://elsewhere/x", "s3://bucket/x", "adapter.safetensors"])
async def test_other_schemes_are_refused(store: ArtifactStore, folder: Path, url: str) -> None:
    files = [replace(file, url=url) for file in read_folder(folder)]

    assert (await refusal(store, files)).code == "fetch_failed"


async def test_what_a_killed_process_left_half_written_is_removed(
    store: ArtifactStore, origin: Origin, tmp_path: Path
) -> None:
    old, fresh = tmp_path / "cache" / "partial-old", tmp_path / "cache" / "partial-fresh"
    for partial in (old, fresh):
        partial.mkdir(parents=True)
        (partial / "adapter_model.safetensors").write_bytes(b"half")
    for path in (old / "adapter_model.safetensors", old):
        os.utime(path, (0, 0))
    files = files_at(origin.url)
    await store.fetch(revision_of(files), files)

    assert (old.exists(), fresh.exists()) == (False, True)
