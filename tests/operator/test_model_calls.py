"""Replicas that want their model are told, with links of that moment, and again when they still want it later."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from lorafleet_operator.backoff import Backoff
from lorafleet_operator.core.objects import Artifact, ArtifactFile, Ref
from lorafleet_operator.errors import RuntimeUnreachable, SourceError
from lorafleet_operator.model_calls import ModelCalls
from lorafleet_operator.runtime_client import RuntimeState
from tests.operator import fleet_kit as kit

BASE = Ref("models", "tiny")
FOUND = Artifact("sha256:1", (ArtifactFile("model.gguf", "s3://bucket/model.gguf", "ab", 2),))
WANTS = RuntimeState("i", "Loading", wants="model")


class Replica:
    """A replica that waits; its client is itself."""

    name = "tiny-0"

    def __init__(self) -> None:
        self.report: RuntimeState | None = WANTS
        self.client: Any = self
        self.told: list[Artifact] = []
        self.away = False

    async def put_model(self, artifact: Artifact) -> None:
        if self.away:
            raise RuntimeUnreachable("away")
        self.told.append(artifact)

    async def refresh(self) -> None: ...


class Bench:
    def __init__(self) -> None:
        self.replica: Any = Replica()
        self.error: SourceError | None = None
        self.links = 0
        self.wakes = 0
        self.calls = ModelCalls(self.wake, self.link, Backoff(0.1, 0.1))

    def wake(self) -> None:
        self.wakes += 1

    async def link(self, base: Ref, artifact: Artifact) -> Artifact:
        if self.error is not None:
            raise self.error
        self.links += 1
        return replace(artifact, files=tuple(replace(f, url=f"https://link/{self.links}") for f in artifact.files))

    def tell(self) -> None:
        self.calls.tell(self.replica, BASE, FOUND)


async def test_a_replica_is_told_once_and_again_only_when_it_still_wants_it_later() -> None:
    bench = Bench()
    for _ in range(3):
        bench.tell()
        await asyncio.sleep(0.01)
    assert [artifact.files[0].url for artifact in bench.replica.told] == ["https://link/1"]
    await kit.until(lambda: bench.wakes == 1)
    bench.tell()
    await kit.until(lambda: len(bench.replica.told) == 2)
    assert bench.replica.told[1].files[0].url == "https://link/2"


async def test_one_that_has_its_model_is_told_nothing() -> None:
    bench = Bench()
    for report in (replace(WANTS, wants=""), None):
        bench.replica.report = report
        bench.tell()
    await asyncio.sleep(0.01)
    assert bench.replica.told == []


async def test_a_link_or_a_call_that_fails_is_tried_again() -> None:
    bench = Bench()
    bench.error = SourceError("AccessDenied", "the bucket does not open")
    bench.tell()
    await kit.until(lambda: bench.wakes == 1)
    bench.error, bench.replica.away = None, True
    bench.tell()
    await kit.until(lambda: bench.wakes == 2)
    bench.replica.away = False
    bench.tell()
    await kit.until(lambda: len(bench.replica.told) == 1)


async def test_what_was_tried_with_a_replica_that_is_up_is_history() -> None:
    bench = Bench()
    bench.tell()
    await kit.until(lambda: len(bench.replica.told) == 1)
    bench.calls.keep(())
    bench.tell()  # it started again: nothing holds this back
    await kit.until(lambda: len(bench.replica.told) == 2)
    await bench.calls.close()
