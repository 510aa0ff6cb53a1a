"""s3:// on a real S3 server: digests, presigned links, and what keys open."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from lorafleet_operator.artifact_sources import s3_source
from lorafleet_operator.artifact_sources.artifact_finder import ArtifactFinder, remote_sources
from lorafleet_operator.artifact_sources.content_digests import Digest
from lorafleet_operator.artifact_sources.source import LINK_SECONDS
from lorafleet_operator.artifact_sources.web_client import WebClient
from tests.operator.artifact_sources import s3_server
from tests.operator.artifact_sources.kit import (
    BASE_CONTENT,
    BASE_EXTRA,
    CONTENT,
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
from tests.operator.artifact_sources.s3_server import OWNER, PUBLIC, READER, S3Server

PIRATE = adapter("s3://adapters/team/pirate", secret=True)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if why := s3_server.lacking():
        pytest.skip(why)
    with s3_server.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def server(running: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    always_anew(monkeypatch)
    for name, content in CONTENT.items():
        running.put(f"team/pirate/{name}", content)
    return running


@pytest.fixture
def secrets(server: S3Server) -> Secrets:
    secrets = Secrets()
    secrets.hold(server.secret())
    return secrets


@pytest.fixture
def sources(secrets: Secrets) -> Iterator[ArtifactFinder]:
    with WebClient() as web:
        yield ArtifactFinder(remote_sources(web), secrets.get)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each object that was read through, by its key."""
    done: list[str] = []
    read = s3_source._read

    def counted(client: object, bucket: str, key: str, etag: str) -> Digest:
        done.append(key)
        return read(client, bucket, key, etag)

    monkeypatch.setattr(s3_source, "_read", counted)
    return done


async def test_a_folder_of_a_bucket_is_found_and_its_links_work_for_a_runtime(
    sources: ArtifactFinder, tmp_path: Path
) -> None:
    found = artifact(sources, PIRATE)
    linked = sources.link(PIRATE.source, found)

    assert says(found) == described()
    assert [file.url for file in found.files] == [f"s3://adapters/team/pirate/{name}" for name in CONTENT]
    assert await fetched(linked, tmp_path) == CONTENT


def test_a_link_expires_and_holds_no_secret_key(sources: ArtifactFinder) -> None:
    linked = sources.link(PIRATE.source, artifact(sources, PIRATE))
    for file in linked.files:
        query = parse_qs(urlsplit(file.url).query)
        assert query["X-Amz-Expires"] == [str(LINK_SECONDS)]
        assert READER[1] not in file.url
        assert file.authorization == ""
        without = urlsplit(file.url)._replace(query="").geturl()
        assert httpx.get(without, trust_env=False).status_code == 403


def test_an_unchanged_object_is_not_read_again_and_a_changed_one_is_a_new_revision(
    sources: ArtifactFinder, server: S3Server, reads: list[str]
) -> None:
    first = artifact(sources, PIRATE)
    assert artifact(sources, PIRATE) == first
    assert len(reads) == 2
    server.put("team/pirate/adapter_model.safetensors", b"trained longer")
    assert artifact(sources, PIRATE).revision != first.revision
    assert len(reads) == 3


@pytest.mark.parametrize("how", ["checksum", "metadata"])
def test_a_digest_that_the_bucket_knows_is_taken_without_reading(
    sources: ArtifactFinder, server: S3Server, reads: list[str], how: str
) -> None:
    for name, content in CONTENT.items():
        written = {"Metadata": {"sha256": hashlib.sha256(content).hexdigest()}}
        options = written if how == "metadata" else {"ChecksumAlgorithm": "SHA256"}
        server.put(f"{how}/{name}", content, **options)
    assert says(artifact(sources, adapter(f"s3://adapters/{how}/", secret=True))) == described()
    assert reads == []


def test_without_a_secret_only_what_anybody_may_read_is_read(
    sources: ArtifactFinder, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", OWNER[0])  # the operator's own identity opens nothing for a tenant
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", OWNER[1])
    for name, content in CONTENT.items():
        server.put(name, content, PUBLIC)
    public = adapter("s3://public")
    linked = sources.link(public.source, artifact(sources, public))

    assert {httpx.get(file.url, trust_env=False).status_code for file in linked.files} == {200}
    assert refused(sources, adapter("s3://adapters/team/pirate")).reason == "AccessDenied"


def test_wrong_keys_are_told_and_right_ones_put_it_right(
    sources: ArtifactFinder, server: S3Server, secrets: Secrets
) -> None:
    secrets.hold(server.secret((READER[0], "not-its-secret-key")))
    found = refused(sources, PIRATE)
    assert (found.reason, "not-its-secret-key" in found.message) == ("AccessDenied", False)
    secrets.hold({**server.secret(), "AWS_SECRET_ACCESS_KEY": ""})
    found = refused(sources, PIRATE)
    assert (found.reason, "AWS_SECRET_ACCESS_KEY" in found.message) == ("SecretIncomplete", True)
    secrets.hold(server.secret())
    assert says(artifact(sources, PIRATE)) == described()


@pytest.mark.parametrize(
    ("uri", "reason", "words"),
    [
        ("s3://adapters/nobody", "NotFound", "adapter_config.json and adapter_model.safetensors"),
        ("s3://adapters/pickled", "PickleRefused", "adapter_model.bin"),
        ("s3://no-such-bucket/x", "", "no-such-bucket"),
        ("s3://Not_A_Bucket/x", "UnsupportedSource", "s3://BUCKET/PATH"),
    ],
)
def test_what_is_not_there_is_said(
    sources: ArtifactFinder, server: S3Server, uri: str, reason: str, words: str
) -> None:
    server.put("pickled/adapter_model.bin", b"pickle")
    server.put("pickled/adapter_config.json", b"{}")
    found = refused(sources, adapter(uri, secret=True))
    assert found.reason == reason or (not reason and found.reason in ("NotFound", "AccessDenied"))
    assert words in found.message


def test_a_server_that_is_away_is_unreachable(sources: ArtifactFinder, server: S3Server, secrets: Secrets) -> None:
    secrets.hold({**server.secret(), "AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    found = refused(sources, PIRATE)
    assert (found.reason, READER[1] in found.message) == ("Unreachable", False)


def test_fields_that_say_nothing_about_a_bucket_are_refused(sources: ArtifactFinder) -> None:
    found = refused(sources, adapter("s3://adapters/team/pirate", revision="v1"))
    assert (found.reason, ".spec.source.revision" in found.message) == ("UnsupportedSource", True)


@pytest.mark.parametrize("uri", ["s3://adapters/base", "s3://adapters/base/tiny.gguf"])
def test_a_base_model_is_its_weights_config_and_tokenizer_or_one_gguf(
    sources: ArtifactFinder, server: S3Server, uri: str
) -> None:
    for name, content in {**BASE_CONTENT, **BASE_EXTRA}.items():
        server.put(f"base/{name}", content)
    server.put("base/tiny.gguf", b"GGUF")
    found = base_artifact(sources, base(uri, secret=True))
    assert says(found) == described({"tiny.gguf": b"GGUF"} if uri.endswith("gguf") else BASE_CONTENT)
