"""oci:// on real registries: names and digests from manifests, tokens from a token server, passwords kept at home."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator

import httpx
import pytest

from lorafleet_operator.artifact_sources.artifact_finder import ArtifactFinder, remote_sources
from lorafleet_operator.artifact_sources.web_client import WebClient
from lorafleet_operator.core.objects import Artifact
from tests.operator.artifact_sources import registry
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
    refused,
    says,
)
from tests.operator.artifact_sources.registry import PASSWORD, USER, Registries

INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registries]:
    if why := registry.lacking():
        pytest.skip(why)
    with registry.running(tmp_path_factory.mktemp("registry")) as registries:
        registries.push("team/pirate", "v1", {f"./out/{name}": content for name, content in CONTENT.items()})
        yield registries


@pytest.fixture
def registries(running: Registries, monkeypatch: pytest.MonkeyPatch) -> Registries:
    always_anew(monkeypatch)
    monkeypatch.setenv("SSL_CERT_FILE", str(running.certificate))
    running.tokens.password = PASSWORD
    running.tokens.given.clear()
    return running


@pytest.fixture
def secrets() -> Secrets:
    return Secrets()


@pytest.fixture
def sources(registries: Registries, secrets: Secrets) -> Iterator[ArtifactFinder]:
    with WebClient() as web:
        yield ArtifactFinder(remote_sources(web), secrets.get)


def docker_config(host: str, password: str = PASSWORD, user: str = USER) -> dict[str, str]:
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {".dockerconfigjson": json.dumps({"auths": {f"https://{host}": {"auth": auth}}})}


def fetched(linked: Artifact, registries: Registries) -> dict[str, bytes]:
    """As a runtime asks: this URL, this header, nothing else."""
    context = ssl.create_default_context(cafile=str(registries.certificate))
    got = {}
    for file in linked.files:
        headers = {"Authorization": file.authorization} if file.authorization else {}
        got[file.name] = (
            httpx.get(file.url, headers=headers, verify=context, trust_env=False).raise_for_status().content
        )
    return got


def test_names_sizes_and_digests_come_from_the_manifest(sources: ArtifactFinder, registries: Registries) -> None:
    pirate = adapter(f"oci://{registries.open}/team/pirate:v1")
    found = artifact(sources, pirate)
    assert says(found) == described()
    assert fetched(sources.link(pirate.source, found), registries) == CONTENT


def test_a_tag_may_move_and_a_digest_stays(sources: ArtifactFinder, registries: Registries) -> None:
    first = registries.push("team/moving", "latest", CONTENT)
    tagged, pinned = (adapter(f"oci://{registries.open}/team/moving{at}") for at in ("", f"@{first}"))
    by_revision = adapter(f"oci://{registries.open}/team/moving", revision=first)
    before = artifact(sources, tagged)
    assert artifact(sources, pinned) == artifact(sources, by_revision) == before
    registries.push("team/moving", "latest", {**CONTENT, "adapter_model.safetensors": b"trained longer"})
    assert artifact(sources, tagged).revision != before.revision
    assert artifact(sources, pinned) == before


def test_a_token_opens_the_files_and_the_password_stays_here(
    sources: ArtifactFinder, registries: Registries, secrets: Secrets
) -> None:
    secrets.hold(docker_config(registries.tokened))
    pirate = adapter(f"oci://{registries.tokened}/team/pirate:v1", secret=True)
    linked = sources.link(pirate.source, artifact(sources, pirate))

    assert fetched(linked, registries) == CONTENT
    assert {file.authorization for file in linked.files} == {f"Bearer {registries.tokens.given[-1]}"}
    assert PASSWORD not in str([(file.url, file.authorization) for file in linked.files])
    assert registries.tokens.given[-1] not in repr(linked)
    assert len(registries.tokens.given) == 1  # for the manifest, a probe and two files


def test_a_refresh_token_opens_as_a_password_does(
    sources: ArtifactFinder, registries: Registries, secrets: Secrets
) -> None:
    login = {"auths": {registries.tokened: {"identitytoken": PASSWORD}}}
    secrets.hold({".dockerconfigjson": json.dumps(login)})
    assert says(artifact(sources, adapter(f"oci://{registries.tokened}/team/pirate:v1", secret=True))) == described()


def test_a_password_that_was_changed_is_told_until_the_secret_has_the_new_one(
    sources: ArtifactFinder, registries: Registries, secrets: Secrets
) -> None:
    pirate = adapter(f"oci://{registries.tokened}/team/pirate:v1", secret=True)
    secrets.hold(docker_config(registries.tokened))
    found = artifact(sources, pirate)
    registries.tokens.password = "changed"
    secrets.hold(docker_config(registries.tokened, "a-typo"))
    refusal = refused(sources, pirate)
    assert (refusal.reason, "a-typo" in refusal.message) == ("AccessDenied", False)
    secrets.hold(docker_config(registries.tokened, "changed"))
    assert artifact(sources, pirate) == found


def test_without_a_secret_a_closed_registry_says_so(sources: ArtifactFinder, registries: Registries) -> None:
    for host in (registries.tokened, registries.passwords):
        assert refused(sources, adapter(f"oci://{host}/team/pirate:v1")).reason == "AccessDenied"


def test_a_registry_of_passwords_only_is_refused_for_they_never_leave_the_operator(
    sources: ArtifactFinder, registries: Registries, secrets: Secrets
) -> None:
    pirate = adapter(f"oci://{registries.passwords}/team/pirate:v1", secret=True)
    secrets.hold(docker_config(registries.passwords))
    found = refused(sources, pirate)
    assert (found.reason, "token server" in found.message) == ("NoShortLivedLink", True)
    secrets.hold(docker_config(registries.passwords, "wrong"))
    assert refused(sources, pirate).reason == "AccessDenied"


@pytest.mark.parametrize(
    ("held", "reason", "words"),
    [
        ({}, "SecretIncomplete", ".dockerconfigjson"),
        ({".dockerconfigjson": "{"}, "SecretInvalid", "auths"),
        ({".dockerconfigjson": '{"auths": {"ghcr.io": {"auth": "eDp5"}}}'}, "SecretIncomplete", "ghcr.io"),
        ({".dockerconfigjson": '{"auths": {"HOST": {"auth": "%"}}}'}, "SecretInvalid", "USER:PASSWORD"),
        ({".dockerconfigjson": '{"auths": {"HOST/team": {"username": "x"}}}'}, "SecretInvalid", "no password"),
    ],
)
def test_a_secret_that_is_no_login_is_said(
    sources: ArtifactFinder, registries: Registries, secrets: Secrets, held: dict[str, str], reason: str, words: str
) -> None:
    secrets.hold({key: value.replace("HOST", registries.tokened) for key, value in held.items()})
    found = refused(sources, adapter(f"oci://{registries.tokened}/team/pirate:v1", secret=True))
    assert (found.reason, words in found.message) == (reason, True), found


@pytest.mark.parametrize(
    ("files", "reason", "words"),
    [
        ({"adapter_config.json": b"{}"}, "NotFound", "adapter_model.safetensors"),
        ({"adapter_config.json": b"{}", "adapter_model.bin": b"x"}, "PickleRefused", "adapter_model.bin"),
        ({"a/adapter_config.json": b"{}", "b/adapter_config.json": b"[]", "adapter_model.safetensors": b"x"},
         "NotAnArtifact", "2 layers"),
        ({}, "NotFound", "adapter_config.json"),
    ],
)  # fmt: skip
def test_an_artifact_that_is_no_adapter_says_what_it_lacks(
    sources: ArtifactFinder, registries: Registries, files: dict[str, bytes], reason: str, words: str
) -> None:
    registries.push("team/odd", "v1", files)
    found = refused(sources, adapter(f"oci://{registries.open}/team/odd:v1"))
    assert (found.reason, words in found.message) == (reason, True), found


def test_an_archive_and_an_index_are_refused_with_what_to_do(sources: ArtifactFinder, registries: Registries) -> None:
    tar = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **registries.blob("team/tar", b"tar")}
    registries.push_layers("team/tar", "v1", [tar])
    found = refused(sources, adapter(f"oci://{registries.open}/team/tar:v1"))
    assert (found.reason, "oras push" in found.message) == ("NotAnArtifact", True)

    digest = registries.push("team/pirate", "again", CONTENT)
    manifests = [{"mediaType": registry.MANIFEST, "digest": digest, "size": 1000}]
    registries.push_manifest("team/pirate", "index", INDEX, {"manifests": manifests})
    found = refused(sources, adapter(f"oci://{registries.open}/team/pirate:index"))
    assert (found.reason, "digest" in found.message) == ("NotAnArtifact", True)


@pytest.mark.parametrize(
    ("uri", "revision", "reason"),
    [
        ("oci://HOST/team/nobody:v1", None, "NotFound"),
        ("oci://HOST/team/pirate:v2", None, "NotFound"),
        ("oci://HOST/team/pirate:v1", "v2", "UnsupportedSource"),
        ("oci://HOST", None, "UnsupportedSource"),
        ("oci://HOST/Team/pirate", None, "UnsupportedSource"),
        ("oci://localhost:1/team/pirate", None, "Unreachable"),
    ],
)
def test_what_is_not_there_is_said(
    sources: ArtifactFinder, registries: Registries, uri: str, revision: str | None, reason: str
) -> None:
    assert refused(sources, adapter(uri.replace("HOST", registries.open), revision=revision)).reason == reason


@pytest.mark.parametrize("content", [BASE_CONTENT, {"tiny.gguf": b"GGUF"}])
def test_a_base_model_is_its_weights_config_and_tokenizer_or_one_gguf(
    sources: ArtifactFinder, registries: Registries, content: dict[str, bytes]
) -> None:
    registries.push("models/base", "v1", {**content, **BASE_EXTRA} if len(content) > 1 else content)
    assert says(base_artifact(sources, base(f"oci://{registries.open}/models/base:v1"))) == described(content)
