"""Before each load, links are made that work now; what prevents that is a failed load like any other."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from lorafleet_operator.adapter_calls import AdapterCalls
from lorafleet_operator.backoff import Backoff
from lorafleet_operator.core.objects import Artifact, ArtifactFile, Ref
from lorafleet_operator.errors import SourceError
from lorafleet_operator.runtime_client import RuntimeState
from tests.operator import fleet_kit as kit

PIRATE = Ref("acme", "pirate")
FOUND = Artifact("sha256:1", (ArtifactFile("adapter_config.json", "s3://bucket/key", "ab", 2),))


class Replica:
    """A replica that takes every load; its client is itself."""

    name = "tiny-0"
    report = RuntimeState("i", "Ready")

    def __init__(self) -> None:
        self.client = self
        self.loads: list[Artifact] = []

    async def put_adapter(self, adapter_id: str, artifact: Artifact, *, pinned: bool) -> str:
        self.loads.append(artifact)
        return "Loading"

    async def refresh(self) -> None: ...


class Links:
    """Numbered links, or the error that stands in their way."""

    def __init__(self) -> None:
        self.made = 0
        self.error: SourceError | None = None

    async def __call__(self, adapter: Ref, artifact: Artifact) -> Artifact:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.made += 1
        files = tuple(replace(file, url=f"https://link/{self.made}") for file in artifact.files)
        return replace(artifact, files=files)


async def load(calls: AdapterCalls, replica: Replica) -> None:
    calls.load(replica, PIRATE, FOUND, pinned=False)  # type: ignore[arg-type]  # all that a load asks of a replica
    await kit.until(lambda: calls.on_their_way == 0)


async def test_each_load_has_links_of_its_own() -> None:
    links, replica = Links(), Replica()
    calls = AdapterCalls(lambda: None, link=links)
    await load(calls, replica)
    await load(calls, replica)
    assert [artifact.files[0].url for artifact in replica.loads] == ["https://link/1", "https://link/2"]


async def test_an_adapter_without_links_has_failed_until_there_are_some() -> None:
    links, replica = Links(), Replica()
    calls = AdapterCalls(lambda: None, Backoff(0.01, 0.02), link=links)
    links.error = SourceError("AccessDenied", "the bucket does not open")
    await load(calls, replica)
    (resident,) = calls.residents(replica)  # type: ignore[arg-type]
    assert (resident.state, resident.reason, resident.message) == ("Failed", "AccessDenied", "the bucket does not open")
    assert (PIRATE, "tiny-0") in calls.retry_at({PIRATE: "sha256:1"})
    links.error = None
    await load(calls, replica)
    assert len(replica.loads) == 1
