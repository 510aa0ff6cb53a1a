"""A base model in a cluster: on a volume that it declares, in the runtime's image, or at a server."""

from __future__ import annotations

import pytest

from lorafleet_operator.artifact_sources.artifact_finder import ArtifactFinder
from lorafleet_operator.artifact_sources.source import Wanted
from lorafleet_operator.core.objects import (
    Artifact,
    ArtifactFile,
    BaseModel,
    Ref,
    Secret,
    SecretKeyRef,
    Source,
    Unresolved,
)
from lorafleet_operator.kube.base_sources import BaseSources

FILES = (ArtifactFile("model.gguf", "fake://model.gguf", "0" * 64, 1),)


class Fake:
    fresh_seconds = 60.0

    def find(self, wanted: Wanted, secret: Secret | None) -> tuple[ArtifactFile, ...]:
        assert (wanted.kind, wanted.base) == ("base", Ref("models", "tiny"))
        return FILES

    def link(self, file: ArtifactFile, source: Source, secret: Secret | None) -> ArtifactFile:
        return file


SOURCES = BaseSources(ArtifactFinder({"s3": Fake()}, lambda ref: None))


def base(uri: str, secret: SecretKeyRef | None = None) -> BaseModel:
    runtime = {"artifactVolumes": [{"name": "weights", "claimName": "weights"}]}
    return BaseModel(Ref("models", "tiny"), "tiny", Source(uri, secret=secret), runtime=runtime)


@pytest.mark.parametrize("uri", ["pvc://weights/base", "package://w/m.gguf", "file:/models/base"])
def test_what_pods_see_is_known_by_what_is_declared(uri: str) -> None:
    found = SOURCES.base(base(uri))
    assert isinstance(found, Artifact)
    assert found.files == ()
    assert found != SOURCES.base(base(uri + "2"))


def test_a_volume_that_is_not_declared_is_said() -> None:
    found = SOURCES.base(base("pvc://other/base"))
    assert isinstance(found, Unresolved)
    assert found.reason == "VolumeNotDeclared"


def test_what_lies_at_a_server_is_found_there_once_its_secret_is_read() -> None:
    found = SOURCES.base(base("s3://bucket/base"))
    assert isinstance(found, Artifact)
    assert found.files == FILES
    assert SOURCES.base(base("s3://bucket/base", SecretKeyRef("models", "login", "token"))) is None
