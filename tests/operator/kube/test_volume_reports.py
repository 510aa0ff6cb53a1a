"""Volumes as replicas tell of them: the first answer counts, and holds while nobody can answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lorafleet_operator.core.objects import ArtifactFile, Ref
from lorafleet_operator.errors import RuntimeRefused, RuntimeUnreachable, SourceError
from lorafleet_operator.kube.volume_reports import VolumeReports

BASE = Ref("models", "tiny")
FILES = (ArtifactFile("adapter_config.json", "file:///artifacts/w/one/adapter_config.json", "0" * 64, 1),)


class Pod:
    """A replica that answers so; its client is itself."""

    name = "tiny-0"

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.client: Any = self

    async def describe_artifact(self, path: str) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def told(reports: VolumeReports) -> Any:
    return await asyncio.to_thread(reports.describe, BASE, "w/one")


async def reports(*pods: Pod) -> VolumeReports:
    found = VolumeReports(lambda base: pods if base == BASE else ())  # type: ignore[arg-type, return-value]  # all that it asks
    found.attach()
    return found


async def test_the_first_replica_that_answers_speaks_for_all() -> None:
    silent, nobody = Pod(RuntimeUnreachable("away")), Pod(FILES)
    nobody.client = None
    assert await told(await reports(silent, nobody, Pod(FILES))) == FILES


async def test_what_was_told_holds_while_nobody_can_answer_or_one_still_reads() -> None:
    pod = Pod(None)
    found = await reports(pod)
    assert await told(found) is None
    pod.answer = FILES
    assert await told(found) == FILES
    for answer in (None, RuntimeUnreachable("away"), RuntimeRefused("disk", status=502, code="fetch_failed")):
        pod.answer = answer
        assert await told(found) == FILES


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("not_found", 404, "NotFound"),
        ("pickle_refused", 422, "PickleRefused"),
        ("invalid_value", 400, "UnsupportedSource"),
    ],
)
async def test_a_refusal_is_told_in_the_replicas_words(code: str, status: int, reason: str) -> None:
    found = await reports(Pod(RuntimeRefused("no volume 'w'", status=status, code=code)))
    with pytest.raises(SourceError) as error:
        await told(found)
    assert (error.value.reason, str(error.value)) == (reason, "tiny-0: no volume 'w'")
