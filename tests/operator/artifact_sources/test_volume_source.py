"""pvc:// and file: in a cluster: which place of a volume they name, and what they may not say."""

from __future__ import annotations

import pytest

from lorafleet_operator.artifact_sources.artifact_finder import ArtifactFinder
from lorafleet_operator.artifact_sources.volume_source import VolumeSource
from lorafleet_operator.core.objects import ArtifactFile, Ref
from tests.operator.artifact_sources.kit import Secrets, adapter, artifact, refused

FILES = (ArtifactFile("adapter_config.json", "file:///artifacts/weights/one/adapter_config.json", "0" * 64, 1),)


class Volumes:
    def __init__(self) -> None:
        self.asked: list[tuple[Ref, str]] = []
        self.known = True

    def describe(self, base: Ref, path: str) -> tuple[ArtifactFile, ...] | None:
        self.asked.append((base, path))
        return FILES if self.known else None


@pytest.fixture
def volumes() -> Volumes:
    return Volumes()


@pytest.fixture
def sources(volumes: Volumes) -> ArtifactFinder:
    source = VolumeSource(volumes.describe)
    return ArtifactFinder({"pvc": source, "file": source}, Secrets().get)


@pytest.mark.parametrize(
    "uri",
    [
        "pvc://weights/team/one", "pvc://weights/team/one/", "file:/artifacts/weights/team/one",
        "file:///artifacts/weights/team/one", "file://localhost/artifacts/weights/team/one/",
    ],
)  # fmt: skip
def test_a_replica_of_the_base_model_is_asked_about_a_place_on_a_volume(
    sources: ArtifactFinder, volumes: Volumes, uri: str
) -> None:
    found = artifact(sources, adapter(uri))
    assert found.files == FILES
    assert sources.link(adapter(uri).source, found) == found
    assert volumes.asked == [(Ref("models", "tiny"), "weights/team/one")]


def test_what_nobody_can_tell_yet_is_not_known(sources: ArtifactFinder, volumes: Volumes) -> None:
    volumes.known = False
    assert sources.adapter(adapter("pvc://weights/one")) is None


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("file:adapters/one", "pvc://VOLUME/PATH"),
        ("file:/etc/one", "pods do not see this path"),
        ("file://host/artifacts/weights/one", "pods do not see"),
        ("pvc://weights", "pvc://VOLUME/PATH"),
    ],
)
def test_any_other_path_is_refused_with_what_to_write(sources: ArtifactFinder, uri: str, words: str) -> None:
    found = refused(sources, adapter(uri))
    assert (found.reason, words in found.message) == ("UnsupportedSource", True), found


def test_fields_that_say_nothing_about_a_volume_are_refused(sources: ArtifactFinder) -> None:
    found = refused(sources, adapter("pvc://weights/one", revision="v1"))
    assert ".spec.source.revision" in found.message
