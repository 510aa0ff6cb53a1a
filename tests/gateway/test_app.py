from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from tests.gateway.fake_runtime import Fault
from tests.gateway.gateway_kit import KEY, OTHER_KEY, Kit, adapter, chat, error_of, placement, tenant, write

POST = "/v1/chat/completions"


async def test_a_wrong_key_is_401_before_anything_is_read(kit: Kit) -> None:
    [replica] = await kit.up()

    status, error = await error_of(kit, key="sk-wrong", data=b"{")

    assert (status, error["code"], error["type"]) == (401, "invalid_api_key", "authentication_error")
    assert (await error_of(kit, key="", json=chat()))[0] == 401
    assert (await error_of(kit, key="sk-wrong", path="/v1/models", method="GET"))[0] == 401
    assert not replica.seen
    async with kit.client("sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_another_tenants_adapter_is_the_same_404_as_nothing_at_all(kit: Kit) -> None:
    [replica] = await kit.up()

    answers = [await error_of(kit, json=chat(model)) for model in ("parrot", "globex.parrot", "nothing")]

    assert {status for status, _ in answers} == {404}
    assert {error["code"] for _, error in answers} == {"model_not_found"}
    assert [error["message"] for _, error in answers] == [
        f"The model `{model}` does not exist." for model in ("parrot", "globex.parrot", "nothing")
    ]
    assert (await error_of(kit, key=OTHER_KEY, json=chat("smol-135m")))[0] == 404
    assert not replica.seen


async def test_a_404_does_not_tell_whether_another_tenant_has_that_name(kit: Kit) -> None:
    await kit.up()

    async def answer() -> tuple[int, bytes, set[str]]:
        async with kit.http.post(POST, json=chat("parrot")) as response:
            return response.status, await response.read(), set(response.headers)

    while_it_is_globexs = await answer()
    await kit.publish([adapter("acme.pirate", [placement("smol-0")])])
    assert while_it_is_globexs == await answer()
    assert while_it_is_globexs[0] == 404


async def test_a_key_of_two_tenants_serves_neither_also_when_it_becomes_one_later(kit: Kit) -> None:
    alone = [tenant("acme", KEY, "sk-shared"), tenant("globex", OTHER_KEY)]
    kit.tenants = alone
    [replica] = await kit.up()
    assert (await error_of(kit, key="sk-shared", json=chat("nothing")))[0] == 404

    kit.tenants = [tenant("acme", KEY, "sk-shared"), tenant("globex", OTHER_KEY, "sk-shared")]
    await kit.publish()
    for body in (chat("pirate"), chat("parrot"), chat("smol-135m")):
        assert (await error_of(kit, key="sk-shared", json=body))[0] == 401
    assert (await error_of(kit, key="sk-shared", path="/v1/models", method="GET"))[0] == 401
    for key in (KEY, OTHER_KEY):
        assert (await error_of(kit, key=key, json=chat("nothing")))[0] == 404
    assert not replica.seen

    kit.tenants = alone
    await kit.publish()
    assert (await error_of(kit, key="sk-shared", json=chat("nothing")))[0] == 404


async def test_a_key_is_rotated_under_an_open_stream_without_dropping_it(kit: Kit) -> None:
    kit.tenants = [tenant("acme", KEY)]
    [replica] = await kit.up(tokens=30, delay=0.02)
    asking = asyncio.create_task(kit.text_of())
    await kit.until(lambda: replica.running == 1)
    kit.tenants = [tenant("acme", KEY, "sk-new")]
    await kit.publish()
    for key in (KEY, "sk-new"):
        assert (await error_of(kit, key=key, json=chat("nothing")))[0] == 404
    kit.tenants = [tenant("acme", "sk-new")]
    await kit.publish()

    assert not asking.done()
    assert (await error_of(kit, json=chat()))[0] == 401
    assert (await error_of(kit, key="sk-new", json=chat("nothing")))[0] == 404
    assert await asking == replica.text()


async def test_each_tenant_lists_what_it_may_call_and_what_is_ready(kit: Kit) -> None:
    await kit.up()
    await kit.publish(
        [
            adapter("acme.pirate", [placement("smol-0")]),
            adapter("acme.late", [placement("smol-0", state="Loading")], state="Loading"),
            adapter("globex.parrot", [placement("smol-0")], servedName="org/parrot"),
        ]
    )

    async with kit.client() as acme, kit.client(OTHER_KEY) as globex:
        ours = {model.id: model async for model in acme.models.list()}
        theirs = [model.id async for model in globex.models.list()]
        one = await globex.models.retrieve("org/parrot")
        with pytest.raises(openai.NotFoundError):
            await acme.models.retrieve("org/parrot")
        with pytest.raises(openai.InternalServerError) as late:
            await acme.models.retrieve("late")

    assert ours.keys() == {"smol-135m", "pirate"}
    assert ours["pirate"].model_dump()["parent"] == "smol-135m"
    assert ours["smol-135m"].model_dump()["max_model_len"] == 2048
    assert theirs == ["org/parrot"]
    assert one.owned_by == "globex"
    assert late.value.status_code == 503


async def test_an_unknown_model_is_404_at_once(kit: Kit) -> None:
    await kit.up()
    started = time.monotonic()

    status, _ = await error_of(kit, json=chat("nothing"))

    assert status == 404
    assert time.monotonic() - started < kit.limits.place_seconds / 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_known_model_that_is_not_ready_is_503_with_retry_after_at_the_deadline(kit: Kit, stream: bool) -> None:
    await kit.up()
    await kit.publish([adapter("acme.pirate", [placement("smol-0", state="Loading")], state="Loading")])
    started = time.monotonic()

    async with kit.http.post(POST, json=chat(stream=stream)) as response:
        error = (await response.json())["error"]

    assert response.status == 503
    assert response.headers["Retry-After"] == "2"
    assert error["code"] == "model_not_ready"
    assert "the adapter is Loading" in error["message"]
    assert kit.limits.place_seconds <= time.monotonic() - started < kit.limits.place_seconds + 0.5


async def test_a_replicas_own_retry_after_is_passed_on(kit: Kit) -> None:
    [replica] = await kit.up()
    replica.faults = [Fault("status", status=503, code="adapter_loading")] * 100

    async with kit.http.post(POST, json=chat()) as response:
        error = (await response.json())["error"]

    assert (response.status, response.headers["Retry-After"]) == (503, "7")
    assert "adapter_loading" in error["message"]


async def test_a_model_that_becomes_ready_within_the_deadline_is_served(kit: Kit) -> None:
    [replica] = await kit.up()
    await kit.publish([adapter("acme.pirate", [])])
    asking = asyncio.create_task(kit.text_of())
    await asyncio.sleep(0.1)
    await kit.publish()

    assert await asking == replica.text()


async def test_a_model_that_is_deleted_while_a_request_waits_is_404(kit: Kit) -> None:
    await kit.up()
    await kit.publish([adapter("acme.pirate", [])])
    asking = asyncio.create_task(error_of(kit, json=chat()))
    await asyncio.sleep(0.1)
    await kit.publish([])

    assert (await asking)[0] == 404


async def test_malformed_json_is_400_with_its_position(kit: Kit) -> None:
    [replica] = await kit.up()

    status, error = await error_of(kit, data=b'{"model": "pirate", oops}')

    assert (status, error["code"]) == (400, "invalid_json")
    assert "byte 20" in error["message"]
    assert (await error_of(kit, data=b'{"model": 3}'))[1]["param"] == "model"
    assert not replica.seen


async def endless(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 65536):
        yield b" " * 65536


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_ten_megabyte_body_is_413(kit: Kit, chunked: bool) -> None:
    [replica] = await kit.up()
    size = 10 * 2**20
    content: Any = endless(size) if chunked else b" " * size

    async with httpx.AsyncClient(base_url=kit.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        response = await client.post(POST, content=content)
        again = await client.post(POST, json=chat())

    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"
    assert again.status_code == 200
    assert len(replica.seen) == 1


async def test_other_methods_and_paths_have_the_same_shape(kit: Kit) -> None:
    await kit.up()

    status, error = await error_of(kit, method="GET")
    assert (status, error["code"]) == (405, "method_not_allowed")
    assert "POST" in error["message"]
    status, error = await error_of(kit, path="/v1/embeddings", json={})
    assert (status, error["code"]) == (404, "unknown_url")
    status, error = await error_of(kit, path="/nowhere", json={})
    assert (status, error["code"]) == (404, "unknown_url")


async def test_before_its_documents_a_gateway_lives_and_is_not_ready(kit: Kit) -> None:
    await kit.serve()
    async with kit.http.get("/health") as health, kit.http.get("/ready") as ready:
        assert (health.status, ready.status, ready.headers["Retry-After"]) == (200, 503, "2")
    assert (await error_of(kit, json=chat()))[0] == 503

    await kit.replica()
    await kit.publish()
    async with kit.http.get("/ready") as ready:
        assert ready.status == 200


async def test_a_rotated_key_is_taken_without_a_restart(kit: Kit) -> None:
    await kit.up()
    write(kit.folder, "tenants.json", {"version": 1, "generation": 2, "tenants": []})
    await kit.source.wait_changed(2.0)

    assert (await error_of(kit, json=chat()))[0] == 401


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_not_an_error(kit: Kit) -> None:
    await kit.up()
    host, port = kit.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {POST} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 1000"
    writer.write(f"{head}\r\n\r\n{{".encode())
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()

    await kit.until(lambda: 'code="499"' in kit.metrics.render().decode())


async def test_a_bug_is_a_500_in_the_same_shape(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    await kit.up()

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("lorafleet_gateway.app.resolve", broken)
    status, error = await error_of(kit, json=chat())

    assert (status, error["code"]) == (500, "internal_error")
    await kit.until(lambda: 'code="500"' in kit.metrics.render().decode())
