"""One writer, newest only: as few writes as changes that anybody could see."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from lorafleet_operator.core.objects import ObjectKey
from lorafleet_operator.errors import KubeGone, KubeRefused, KubeUnreachable
from lorafleet_operator.kube import status_writer
from lorafleet_operator.kube.status_writer import StatusWriter

ONE = ObjectKey("LoRAAdapter", "acme", "one")


class Api:
    def __init__(self) -> None:
        self.writes: list[Mapping[str, Any]] = []
        self.failures: list[Exception] = []
        self.schemas: dict[str, Any] = {}
        self.logs: list[Any] = []

    async def openapi(self, group_version: str) -> dict[str, Any]:
        if not self.schemas:
            raise KubeRefused("not for you", status=403)
        return {"components": {"schemas": self.schemas}}

    async def apply_status(self, kind: str, namespace: str, name: str, status: Mapping[str, Any]) -> dict[str, Any]:
        if self.failures:
            raise self.failures.pop(0)
        self.writes.append(status)
        return {}


@pytest.fixture
async def writing(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Api, StatusWriter]]:
    monkeypatch.setattr(status_writer, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(status_writer, "GATHER_SECONDS", 0.1)
    api = Api()
    api.schemas = getattr(request, "param", {})
    writer = StatusWriter(api, 60.0)  # type: ignore[arg-type]  # two methods of the client are all that a writer needs
    with capture_logs() as api.logs:
        task = asyncio.create_task(writer.run())
        yield api, writer
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def settled() -> None:
    await asyncio.sleep(0.4)


async def test_statuses_that_follow_each_other_at_once_are_written_once(writing: tuple[Api, StatusWriter]) -> None:
    api, writer = writing
    seen: dict[ObjectKey, Mapping[str, Any]] = {ONE: {}}
    for ready in ("0/1", "0/2", "1/1"):
        writer.offer({ONE: {"ready": ready}}, seen)
    await settled()
    assert api.writes == [{"ready": "1/1"}]


async def test_what_was_written_is_not_written_again_before_the_watch_shows_it(
    writing: tuple[Api, StatusWriter],
) -> None:
    api, writer = writing
    for _ in range(3):
        writer.offer({ONE: {"ready": "1/1"}}, {ONE: {}})
        await settled()
    assert len(api.writes) == 1
    assert writer.known({ONE: {}}) == {ONE: {"ready": "1/1"}}


async def test_a_failed_write_is_tried_again_with_the_newest_status(writing: tuple[Api, StatusWriter]) -> None:
    api, writer = writing
    api.failures = [KubeUnreachable("away")]
    writer.offer({ONE: {"ready": "0/1"}}, {ONE: {}})
    await settled()
    assert api.writes == [{"ready": "0/1"}]


async def test_an_object_that_is_gone_is_forgotten(writing: tuple[Api, StatusWriter]) -> None:
    api, writer = writing
    api.failures = [KubeGone("gone", status=404)]
    writer.offer({ONE: {"ready": "0/1"}}, {ONE: {}})
    await settled()
    assert api.writes == []
    assert writer.known({}) == {}


OLD = {"an.older.LoRAAdapter": {
    "x-kubernetes-group-version-kind": [{"group": "lorafleet.dev", "kind": "LoRAAdapter", "version": "v1alpha1"}],
    "properties": {"spec": {"properties": {}}, "status": {"properties": {"ready": {"type": "string"}}}},
}}  # fmt: skip


@pytest.mark.parametrize("writing", [OLD], indirect=True)
async def test_an_older_definition_gets_what_it_has_room_for_once(
    writing: tuple[Api, StatusWriter],
) -> None:
    api, writer = writing
    seen: dict[ObjectKey, Mapping[str, Any]] = {ONE: {}}
    for _ in range(3):
        writer.offer({ONE: {"ready": "1/1", "rank": 8}}, seen)
        await settled()
        writer.forget()
        seen = {ONE: api.writes[-1]}

    assert api.writes == [{"ready": "1/1"}]
    assert {entry["definition"] for entry in api.logs} == {"loraadapters.lorafleet.dev"}
    lacks = [entry["lacks"] for entry in api.logs]
    assert lacks.count(".status.rank") == 1
    assert ".spec.copies" in lacks
    assert ".spec.copies.min" not in lacks


TENANTS = [ObjectKey("Tenant", "", f"t{i}") for i in range(6)]


async def test_news_of_usage_alone_are_written_one_after_the_other_and_hold_nobody_up(
    writing: tuple[Api, StatusWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    api, writer = writing
    monkeypatch.setattr(status_writer, "USAGE_SECONDS", 0.3)
    seen: dict[ObjectKey, Mapping[str, Any]] = {ONE: {}, **{key: {"keys": "1/1"} for key in TENANTS}}
    writer.offer({key: {"keys": "1/1", "usage": {"service": 1}} for key in TENANTS}, seen)
    writer.offer({ONE: {"ready": "1/1"}}, seen)
    await settled()

    assert {"ready": "1/1"} in api.writes
    assert 1 <= sum("usage" in status for status in api.writes) <= 3
    assert writer.known(seen)[TENANTS[-1]] == {"keys": "1/1", "usage": {"service": 1}}


async def test_other_news_of_a_tenant_take_its_usage_along(
    writing: tuple[Api, StatusWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    api, writer = writing
    monkeypatch.setattr(status_writer, "USAGE_SECONDS", 60.0)
    seen: dict[ObjectKey, Mapping[str, Any]] = {key: {"keys": "1/1"} for key in TENANTS}
    writer.offer({key: {"keys": "1/1", "usage": {"service": 1}} for key in TENANTS}, seen)
    await asyncio.sleep(0)  # the first passes, the others wait
    writer.offer({TENANTS[3]: {"keys": "0/1", "usage": {"service": 2}}}, seen)
    await settled()

    assert {"keys": "0/1", "usage": {"service": 2}} in api.writes
    assert len(api.writes) == 2
