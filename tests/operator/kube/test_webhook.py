"""The webhook's answers as an API server reads them, and its certificate, which is renewed under it."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from lorafleet_operator.errors import UsageError
from lorafleet_operator.kube import webhook
from lorafleet_operator.kube.certificate import Certificate
from lorafleet_operator.kube.settings import WebhookSettings, cluster_settings
from lorafleet_operator.kube.store import Store
from tests.cluster import lab

Document = dict[str, Any]
BASE: Document = {
    "metadata": {"name": "tiny", "namespace": "models"},
    "spec": {"source": {"uri": "package://w/base.gguf"}},
}
TOKENS = {"LORAFLEET_SERVING_TOKEN": "s" * 16, "LORAFLEET_ADMIN_TOKEN": "a" * 16, "POD_NAMESPACE": "home"}


def lora(name: str = "one", namespace: str = "models", **spec: Any) -> Document:
    source = {"baseModelRef": {"namespace": "models", "name": "tiny"}, "source": {"uri": "https://x/y"}, **spec}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "lorafleet.dev/v1alpha1", "kind": "LoRAAdapter", "metadata": metadata, "spec": source}


def asked(document: Document, operation: str = "CREATE", **more: Any) -> Document:
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u-1", "operation": operation, "kind": {"kind": document["kind"]}, "object": document,
        "namespace": document["metadata"]["namespace"], "name": document["metadata"]["name"], **more,
    }}  # fmt: skip


@pytest.fixture
def store() -> Store:
    store = Store()
    store.put("BaseModel", BASE)
    store.complete = True
    return store


@pytest.fixture
async def client(store: Store, tmp_path: Path) -> AsyncIterator[TestClient[Any, Any]]:
    served = webhook.Webhook(WebhookSettings(1, tmp_path), store, ("models", "acme"))
    async with TestClient(TestServer(served.app())) as client:
        yield client


async def answer(client: TestClient[Any, Any], body: Document) -> Document:
    response = await client.post("/validate", json=body)
    assert response.status == 200, await response.text()
    review: Document = await response.json()
    assert (review["apiVersion"], review["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    assert review["response"]["uid"] == "u-1"
    return dict(review["response"])


async def test_a_refusal_carries_the_sentence_and_a_sound_object_none(client: TestClient[Any, Any]) -> None:
    refused = await answer(client, asked(lora(namespace="acme")))
    allowed = await answer(client, asked(lora()))

    assert not refused["allowed"]
    assert refused["status"]["code"] == 422
    assert "BaseModel models/tiny takes no adapters from namespace acme" in refused["status"]["message"]
    assert allowed == {"uid": "u-1", "allowed": True}


LEAVING = {"name": "a", "namespace": "acme", "deletionTimestamp": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize("body", [
    asked(lora(namespace="acme"), "DELETE"),
    asked(lora(namespace="unwatched")),
    asked(lora(namespace="acme"), "UPDATE", subResource="status"),
    asked({**lora(namespace="acme"), "metadata": LEAVING}, "UPDATE"),
    asked(lora(namespace="acme"), "UPDATE", oldObject=lora(namespace="acme")),
], ids=["delete", "another operator's", "status", "being deleted", "unchanged"])  # fmt: skip
async def test_what_is_not_reviewed_is_let_through_in_silence(client: TestClient[Any, Any], body: Document) -> None:
    assert await answer(client, body) == {"uid": "u-1", "allowed": True}


async def test_a_review_that_fails_lets_the_object_through_and_says_so(
    client: TestClient[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr(webhook, "review", broken)
    told = await answer(client, asked(lora()))

    assert told["allowed"]
    assert "could not check" in told["warnings"][0]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"request": {"uid": "u"}}'])
async def test_what_is_no_review_is_a_bad_request(client: TestClient[Any, Any], body: bytes) -> None:
    response = await client.post("/validate", data=body)

    assert response.status == 400
    assert "AdmissionReview" in await response.text()


async def test_a_watch_that_is_a_little_behind_costs_no_refusal(client: TestClient[Any, Any], store: Store) -> None:
    opened = {**BASE, "spec": {**BASE["spec"], "allowedNamespaces": {"from": "All"}}}
    asyncio.get_running_loop().call_later(0.05, store.put, "BaseModel", opened)

    assert (await answer(client, asked(lora(namespace="acme"))))["allowed"]


async def test_ten_adapters_of_one_missing_base_model_wait_for_the_watch_once(client: TestClient[Any, Any]) -> None:
    begun = time.monotonic()
    for index in range(10):
        told = await answer(client, asked(lora(f"a{index}", baseModelRef={"namespace": "models", "name": "gone"})))
        assert told["allowed"]
        assert f"models/a{index}: .spec.baseModelRef: there is no BaseModel models/gone" in told["warnings"][0]

    assert time.monotonic() - begun < 5 * webhook.BEHIND_SECONDS


async def test_readiness_follows_the_store(client: TestClient[Any, Any], store: Store) -> None:
    statuses = []
    for store.complete in (True, False):  # the loop sets it
        statuses.append((await client.get("/ready")).status)

    assert statuses == [200, 503]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
async def test_a_certificate_is_waited_for_and_a_renewed_one_counts_for_new_connections(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorafleet_operator.kube.certificate.LOOK_SECONDS", 0.02)
    folder = tmp_path / "mounted"
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
    running = asyncio.create_task(webhook.Webhook(WebhookSettings(port, folder), store).run())

    async def reached(authority: Path) -> bool:
        context = ssl.create_default_context(cafile=str(authority))
        try:
            url = f"https://localhost:{port}/ready"
            async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def eventually(authority: Path) -> None:
        async with asyncio.timeout(10):
            while not await reached(authority):
                await asyncio.sleep(0.02)

    def renew(name: str) -> Path:
        made = tmp_path / name
        made.mkdir()
        certificate, key = lab.certificate(made)
        folder.mkdir(exist_ok=True)
        shutil.copy(certificate, folder / "tls.crt")
        shutil.copy(key, folder / "tls.key")
        return certificate

    try:
        await asyncio.sleep(0.1)
        first = renew("first")
        await eventually(first)
        second = renew("second")
        await eventually(second)
        assert not await reached(first)
        (folder / "tls.crt").write_text("not a certificate")
        await asyncio.sleep(0.1)
        assert await reached(second)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_taken_port_is_named(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Certificate, "look", lambda _: True)
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--webhook-port {port}: .*in use"):
            await webhook.Webhook(WebhookSettings(port, tmp_path), store).run()


@pytest.mark.parametrize(("port", "folder", "says"), [
    (9443, None, "belong together"), (None, "/certs", "belong together"), (70000, "/certs", "between 1 and 65535"),
])  # fmt: skip
def test_options_that_cannot_be_followed_are_named(port: int | None, folder: str | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        cluster_settings(image="x", webhook_port=port, webhook_certificates=folder, env=TOKENS)
