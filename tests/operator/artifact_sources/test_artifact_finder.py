"""What holds for every scheme: Secrets looked up anew, answers kept for a while, no error that stops others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lorafleet_operator.artifact_sources.artifact_finder import ArtifactFinder
from lorafleet_operator.artifact_sources.source import Wanted
from lorafleet_operator.core.objects import ArtifactFile, Ref, Secret, Source, Unresolved
from lorafleet_operator.errors import SourceError
from tests.operator.artifact_sources.kit import SECRET, Secrets, adapter, artifact, refused

FILES = tuple(ArtifactFile(name, f"fake://{name}", "0" * 64, 1) for name in ("adapter_config.json", "w.safetensors"))
PIRATE = adapter("fake://pirate", secret=True)
MISSING = Unresolved("SecretNotFound", "there is no Secret acme/login: create it")


class Fake:
    """A source that opens with one password."""

    fresh_seconds = 60.0

    def __init__(self) -> None:
        self.finds = 0
        self.error: Exception | None = None

    def find(self, wanted: Wanted, secret: Secret | None) -> tuple[ArtifactFile, ...] | None:
        self.finds += 1
        if self.error is not None:
            raise self.error
        if secret is not None and secret.data["password"] != b"right":
            raise SourceError("AccessDenied", "wrong")
        return FILES

    def link(self, file: ArtifactFile, source: Source, secret: Secret | None) -> ArtifactFile:
        if self.error is not None:
            raise self.error
        return replace(file, url="https://link", authorization=secret.data["password"].decode() if secret else "")


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def secrets() -> Secrets:
    secrets = Secrets()
    secrets.hold({"password": "right"})
    return secrets


@pytest.fixture
def sources(fake: Fake, secrets: Secrets) -> ArtifactFinder:
    return ArtifactFinder({"fake": fake}, secrets.get)


def test_an_answer_counts_for_a_while(sources: ArtifactFinder, fake: Fake) -> None:
    assert artifact(sources, PIRATE) == artifact(sources, PIRATE)
    assert fake.finds == 1


def test_another_secret_counts_at_once(sources: ArtifactFinder, fake: Fake, secrets: Secrets) -> None:
    artifact(sources, PIRATE)
    secrets.hold({"password": "wrong"})
    assert refused(sources, PIRATE).reason == "AccessDenied"
    secrets[Ref(SECRET.namespace, SECRET.name)] = MISSING
    assert refused(sources, PIRATE) == MISSING
    secrets.hold({"password": "right"})
    artifact(sources, PIRATE)
    assert fake.finds == 3


def test_while_a_secret_is_being_read_nothing_is_known(sources: ArtifactFinder, fake: Fake, secrets: Secrets) -> None:
    found = artifact(sources, PIRATE)
    secrets.clear()
    assert sources.adapter(PIRATE) is None
    with pytest.raises(SourceError) as error:
        sources.link(PIRATE.source, found)
    assert error.value.reason == "SecretNotRead"
    assert fake.finds == 1


def test_two_base_models_are_asked_about_apart(sources: ArtifactFinder, fake: Fake) -> None:
    artifact(sources, PIRATE)
    artifact(sources, replace(PIRATE, base=Ref("models", "other")))
    assert fake.finds == 2


def test_links_are_made_for_each_load_with_the_secret_of_then(sources: ArtifactFinder, secrets: Secrets) -> None:
    found = artifact(sources, PIRATE)
    secrets.hold({"password": "another"})
    assert {file.authorization for file in sources.link(PIRATE.source, found).files} == {"another"}


def test_an_error_that_nobody_expected_stays_with_its_adapter_and_says_no_more_than_its_kind(
    sources: ArtifactFinder, fake: Fake
) -> None:
    found = artifact(sources, PIRATE)
    fake.error = ZeroDivisionError("Bearer s3cret")
    refusal = refused(sources, adapter("fake://other"))
    assert (refusal.reason, "ZeroDivisionError" in refusal.message) == ("InternalError", True)
    assert "s3cret" not in refusal.message
    with pytest.raises(SourceError) as error:
        sources.link(PIRATE.source, found)
    assert "s3cret" not in str(error.value)


def test_a_scheme_that_is_not_read_here_names_those_that_are(sources: ArtifactFinder) -> None:
    found = refused(sources, adapter("package://weights/one"))
    assert (found.reason, "fake:" in found.message) == ("UnsupportedSource", True)
