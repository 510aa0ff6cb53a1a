"""hf:// against the hub's protocol: commits, digests, and links that leave the token at home."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lorafleet_operator.artifact_sources.artifact_finder import ArtifactFinder, remote_sources
from lorafleet_operator.artifact_sources.hf_source import MOST_INLINE
from lorafleet_operator.artifact_sources.web_client import WebClient
from lorafleet_operator.core.objects import SecretKeyRef, Source
from lorafleet_operator.errors import SourceError
from tests.operator.artifact_sources import fake_hub
from tests.operator.artifact_sources.fake_hub import SIGNATURE, TOKEN, Hub
from tests.operator.artifact_sources.kit import (
    BASE_CONTENT,
    BASE_EXTRA,
    CONTENT,
    SECRET,
    Secrets,
    adapter,
    always_anew,
    artifact,
    base,
    base_artifact,
    described,
    fetched,
    refused,
    says,
)

PIRATE = adapter("hf://acme/pirate")
PRIVATE = adapter("hf://acme/private", secret=True)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    always_anew(monkeypatch)
    with fake_hub.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.put("acme/pirate", CONTENT, "v1")
        hub.put("acme/private", CONTENT)
        hub.private.add("acme/private")
        yield hub


@pytest.fixture
def secrets() -> Secrets:
    secrets = Secrets()
    secrets.hold({"token": TOKEN})
    return secrets


@pytest.fixture
def sources(hub: Hub, secrets: Secrets) -> Iterator[ArtifactFinder]:
    with WebClient() as web:
        yield ArtifactFinder(remote_sources(web), secrets.get)


async def test_a_public_repository_is_found_and_its_links_work_for_a_runtime(
    sources: ArtifactFinder, tmp_path: Path
) -> None:
    found = artifact(sources, PIRATE)
    assert says(found) == described()
    assert await fetched(sources.link(PIRATE.source, found), tmp_path) == CONTENT


async def test_of_a_private_repository_a_runtime_gets_a_signed_link_a_small_file_and_no_token(
    sources: ArtifactFinder, tmp_path: Path
) -> None:
    linked = sources.link(PRIVATE.source, artifact(sources, PRIVATE))
    config, weights = linked.files

    assert config.url.startswith("data:")
    assert f"Signature={SIGNATURE}" in weights.url
    assert TOKEN not in str([(file.url, file.authorization) for file in linked.files])
    assert await fetched(linked, tmp_path) == CONTENT


def test_small_files_are_read_once_and_large_ones_never(sources: ArtifactFinder, hub: Hub) -> None:
    artifact(sources, PRIVATE)
    hub.asked.clear()
    artifact(sources, PRIVATE)
    assert hub.asked == ["/api/models/acme/private/revision/main"]


def test_main_moves_with_the_repository_and_a_commit_stays(sources: ArtifactFinder, hub: Hub) -> None:
    before = artifact(sources, PIRATE)
    commit = before.files[0].url.partition("@")[2].partition("/")[0]
    hub.put("acme/pirate", {**CONTENT, "adapter_model.safetensors": b"trained longer"})
    assert artifact(sources, PIRATE).revision != before.revision
    pins = (f"hf://acme/pirate@{commit}", None), ("hf://acme/pirate@v1", None), ("hf://acme/pirate", "v1")
    for pinned in (adapter(uri, revision=revision) for uri, revision in pins):
        assert artifact(sources, pinned) == before


def test_a_branch_with_a_slash_and_a_folder_below(sources: ArtifactFinder, hub: Hub) -> None:
    files = {f"checkpoints/2/{name}": content for name, content in CONTENT.items()}
    hub.put("acme/nested", {"README.md": b"x", **files}, "refs/pr/1")
    for uri, revision in (
        ("hf://acme/nested/checkpoints/2", "refs/pr/1"), ("hf://acme/nested@refs%2Fpr%2F1/checkpoints/2/", None)
    ):  # fmt: skip
        assert says(artifact(sources, adapter(uri, revision=revision))) == described()


async def test_a_renamed_repository_is_followed(sources: ArtifactFinder, hub: Hub, tmp_path: Path) -> None:
    hub.renamed["old/name"] = "acme/private"
    renamed = adapter("hf://old/name", secret=True)
    assert await fetched(sources.link(renamed.source, artifact(sources, renamed)), tmp_path) == CONTENT


def test_a_token_that_was_revoked_is_told_until_the_secret_has_the_new_one(
    sources: ArtifactFinder, hub: Hub, secrets: Secrets
) -> None:
    found = artifact(sources, PRIVATE)
    hub.token = "hf_another"
    refusal = refused(sources, PRIVATE)
    assert refusal.reason == "AccessDenied"
    assert "RepoNotFound" in refusal.message
    assert TOKEN not in refusal.message
    secrets.hold({"HF_TOKEN": "hf_another"})
    assert artifact(sources, PRIVATE) == found


def test_a_secret_may_name_its_key_and_a_mirror(
    hub: Hub, secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    secrets.hold({"mine": TOKEN, "HF_ENDPOINT": hub.url + "/"})
    source = Source("hf://acme/private", secret=SecretKeyRef(SECRET.namespace, SECRET.name, "mine"))
    with WebClient() as web:
        assert (
            says(artifact(ArtifactFinder(remote_sources(web), secrets.get), replace(PIRATE, source=source)))
            == described()
        )


@pytest.mark.parametrize(
    ("uri", "revision", "reason", "words"),
    [
        ("hf://acme/nobody", None, "AccessDenied", "RepoNotFound"),
        ("hf://acme/pirate@v9", None, "NotFound", "RevisionNotFound"),
        ("hf://acme/pirate/nested", None, "NotFound", "adapter_config.json"),
        ("hf://acme/pickled", None, "PickleRefused", "adapter_model.bin"),
        ("hf://acme", None, "UnsupportedSource", "hf://ORG/NAME"),
        ("hf://acme/pirate@v1", "v2", "UnsupportedSource", ".spec.source.revision"),
    ],
)
def test_what_is_not_there_is_said(
    sources: ArtifactFinder, hub: Hub, uri: str, revision: str | None, reason: str, words: str
) -> None:
    hub.put("acme/pickled", {"adapter_config.json": b"{}", "adapter_model.bin": b"x"})
    found = refused(sources, adapter(uri, revision=revision))
    assert (found.reason, words in found.message) == (reason, True), found


def test_a_large_file_without_a_link_of_its_own_is_refused_rather_than_handed_a_token(
    sources: ArtifactFinder, hub: Hub
) -> None:
    hub.put("acme/private", {**CONTENT, "adapter_config.json": b" " * (MOST_INLINE + 1)})
    with pytest.raises(SourceError) as error:
        sources.link(PRIVATE.source, artifact(sources, PRIVATE))
    assert error.value.reason == "NoShortLivedLink"


@pytest.mark.parametrize("path", ["", "/quantised/tiny.gguf"])
def test_a_base_model_is_its_weights_config_and_tokenizer_or_one_gguf(
    sources: ArtifactFinder, hub: Hub, path: str
) -> None:
    hub.put("acme/base", {**BASE_CONTENT, **BASE_EXTRA, "quantised/tiny.gguf": b"GGUF"})
    found = base_artifact(sources, base(f"hf://acme/base{path}"))
    assert says(found) == described({"tiny.gguf": b"GGUF"} if path else BASE_CONTENT)
