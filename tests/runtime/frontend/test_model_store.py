"""A base model that was ordered: fetched in parts that are kept, verified, and found again."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from lorafleet_runtime.errors import ArtifactError
from lorafleet_runtime.frontend.artifact_files import ArtifactFile, revision_of
from lorafleet_runtime.frontend.model_store import ModelStore, check_model

CONTENT = {"config.json": b"{}", "model.safetensors": b"weights " * 1000}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "cache")


def ordered(folder: Path, content: dict[str, bytes] | None = None) -> list[ArtifactFile]:
    folder.mkdir(exist_ok=True)
    files = []
    for name, body in (content or CONTENT).items():
        (folder / name).write_bytes(body)
        files.append(ArtifactFile(name, (folder / name).as_uri(), hashlib.sha256(body).hexdigest(), len(body)))
    return files


async def test_a_model_is_fetched_whole_and_found_again_by_the_next_process(store: ModelStore, tmp_path: Path) -> None:
    files = ordered(tmp_path / "origin")
    folder = await store.fetch(revision_of(files), files)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENT
    assert ModelStore(tmp_path / "cache").last() == folder
    (folder / "config.json").unlink()
    assert store.last() is None


async def test_a_gguf_file_is_named_itself(store: ModelStore, tmp_path: Path) -> None:
    files = ordered(tmp_path / "origin", {"tiny.gguf": b"GGUF"})
    found = await store.fetch(revision_of(files), files)
    assert found.read_bytes() == b"GGUF"
    assert store.last() == found


async def test_what_was_whole_is_not_fetched_again_after_a_failure(store: ModelStore, tmp_path: Path) -> None:
    files = ordered(tmp_path / "origin")
    config, weights = files
    broken = [config, replace(weights, url=(tmp_path / "nowhere").as_uri())]
    with pytest.raises(ArtifactError) as error:
        await store.fetch(revision_of(files), broken)
    assert error.value.code == "fetch_failed"
    (tmp_path / "origin" / "config.json").unlink()  # it is here already
    assert (await store.fetch(revision_of(files), files)).is_dir()


async def test_another_content_than_announced_is_refused(store: ModelStore, tmp_path: Path) -> None:
    files = ordered(tmp_path / "origin")
    (tmp_path / "origin" / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(ArtifactError) as error:
        await store.fetch(revision_of(files), files)
    assert error.value.code == "digest_mismatch"
    assert store.last() is None


async def test_a_model_that_does_not_fit_is_said_before_it_fills_the_disk(store: ModelStore, tmp_path: Path) -> None:
    config, weights = ordered(tmp_path / "origin")
    files = [config, replace(weights, size=1 << 60)]
    with pytest.raises(ArtifactError) as error:
        await store.fetch(revision_of(files), files)
    assert "are free" in error.value.message


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["config.json"], "safetensors"),
        (["pytorch_model.bin", "config.json"], "pickle"),
        (["../model.safetensors"], "plain file name"),
        (["model.safetensors", "model.safetensors"], "twice"),
    ],
)
def test_what_can_never_be_a_model_is_refused_at_once(names: list[str], words: str) -> None:
    files = [ArtifactFile(name, "https://host/x", "0" * 64, 1) for name in names]
    with pytest.raises(ArtifactError) as error:
        check_model(revision_of(files), files)
    assert words in error.value.message
