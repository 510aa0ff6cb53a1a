"""One machine reads its own files, and servers with the Secrets of its YAML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lorafleet_operator.core.objects import Artifact, Desired, Ref, Secret, Source, Unresolved
from lorafleet_operator.errors import SourceError
from lorafleet_operator.local.local_sources import LocalSources
from tests.operator import fleet_kit as kit
from tests.operator.artifact_sources import fake_hub
from tests.operator.artifact_sources.fake_hub import TOKEN, Hub
from tests.operator.artifact_sources.kit import CONTENT, SECRET, adapter, described, fetched, says

LOGIN = Ref(SECRET.namespace, SECRET.name)
PRIVATE = adapter("hf://acme/private", secret=True)


class Yaml:
    """What is declared now."""

    def __init__(self) -> None:
        secrets = {LOGIN: Secret(LOGIN, {"token": TOKEN.encode()})}
        self.desired = Desired(adapters={PRIVATE.ref: PRIVATE}, secrets=secrets)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with fake_hub.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.put("acme/private", CONTENT)
        hub.private.add("acme/private")
        yield hub


@pytest.fixture
def yaml() -> Yaml:
    return Yaml()


@pytest.fixture
def sources(hub: Hub, yaml: Yaml) -> Iterator[LocalSources]:
    sources = LocalSources(lambda: yaml.desired)
    yield sources
    sources.close()


async def test_a_server_is_read_with_the_secret_of_the_yaml(sources: LocalSources, tmp_path: Path) -> None:
    found = sources.adapter(PRIVATE)
    assert isinstance(found, Artifact)
    assert says(found) == described()
    assert await fetched(await sources.link(PRIVATE.ref, found), tmp_path) == CONTENT


async def test_a_secret_or_an_adapter_that_is_not_declared_is_said(sources: LocalSources, yaml: Yaml) -> None:
    found = sources.adapter(PRIVATE)
    assert isinstance(found, Artifact)
    yaml.desired = replace(yaml.desired, secrets={})
    lacking = sources.adapter(PRIVATE)
    assert isinstance(lacking, Unresolved)
    assert (lacking.reason, str(LOGIN) in lacking.message) == ("SecretNotFound", True)
    yaml.desired = Desired()
    with pytest.raises(SourceError):
        await sources.link(PRIVATE.ref, found)


async def test_a_folder_here_is_linked_as_it_is(sources: LocalSources, yaml: Yaml, tmp_path: Path) -> None:
    here = replace(PRIVATE, source=Source(f"file:{kit.write_adapter(tmp_path / 'one')}"))
    yaml.desired = Desired(adapters={here.ref: here})
    found = sources.adapter(here)
    assert isinstance(found, Artifact)
    assert await sources.link(here.ref, found) == found


def test_a_volume_is_a_cluster_s(sources: LocalSources) -> None:
    found = sources.adapter(adapter("pvc://weights/one"))
    assert isinstance(found, Unresolved)
    assert (found.reason, "file:" in found.message) == ("UnsupportedSource", True)
