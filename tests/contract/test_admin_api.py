"""The operator's client against the runtime's real admin port: a real process, real adapters, real refusals."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorafleet_operator import errors
from lorafleet_operator.core.objects import Artifact
from lorafleet_operator.runtime_client import AdapterReport, RuntimeClient, RuntimeState
from lorafleet_runtime.model.config import LORA_TARGETS
from lorafleet_runtime.model.tiny import random_adapter
from tests.contract.replica_kit import ADMIN_TOKEN, CONFIG, Replica, running, saved, with_digest
from tests.contract.shapes import shape, words

pytestmark = pytest.mark.slow

GREEDY = {"prompt": "hello", "max_tokens": 12, "temperature": 0, "ignore_eos": True}


def too_large(folder: Path) -> Artifact:
    """More pages than the pool leaves beside one full context."""
    return saved(folder, rank=128, targets=LORA_TARGETS)


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    with running(tmp_path_factory.mktemp("replica")) as replica:
        yield replica


@pytest.fixture
async def client(replica: Replica) -> AsyncIterator[RuntimeClient]:
    """The operator's client at the epoch that the runtime has seen; it leaves no adapter behind."""
    async with RuntimeClient(replica.admin_url, ADMIN_TOKEN, timeout=30) as client:
        client.epoch = (await client.state()).epoch
        yield client
        for report in (await client.state()).adapters:
            await client.delete_adapter(report.id)


async def report_of(
    client: RuntimeClient, adapter: str, until: Callable[[AdapterReport], bool] = lambda r: r.state != "Loading"
) -> AdapterReport:
    """What the runtime reports of one adapter, once it is as wanted."""
    deadline = time.monotonic() + 20
    while True:
        found = [report for report in (await client.state()).adapters if report.id == adapter]
        if found and until(found[-1]):
            return found[-1]
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)


def ready(artifact: Artifact) -> Callable[[AdapterReport], bool]:
    return lambda report: (report.revision, report.state) == (artifact.revision, "Ready")


async def test_a_load_becomes_ready_and_serves(client: RuntimeClient, replica: Replica, tmp_path: Path) -> None:
    artifact = saved(tmp_path / "pirate", rank=8, seed=1)
    state = await client.put_adapter("acme.pirate", artifact)
    report = await report_of(client, "acme.pirate")
    base, adapted = (replica.complete(model=model, **GREEDY).json() for model in ("tiny", "acme.pirate"))

    assert state == "Loading"
    assert (report.state, report.revision, report.rank) == ("Ready", artifact.revision, 8)
    assert report.pages > 0
    assert report.bytes > 0
    assert base["choices"][0]["text"] != adapted["choices"][0]["text"]


async def test_a_load_is_idempotent_by_revision(client: RuntimeClient, tmp_path: Path) -> None:
    artifact = saved(tmp_path / "pirate", rank=8, seed=1)
    await client.put_adapter("acme.pirate", artifact)
    await report_of(client, "acme.pirate")

    assert await client.put_adapter("acme.pirate", artifact) == "Ready"
    assert [report.id for report in (await client.state()).adapters] == ["acme.pirate"]


async def test_an_unload_is_gone_and_may_be_repeated(client: RuntimeClient, replica: Replica, tmp_path: Path) -> None:
    await client.put_adapter("acme.pirate", saved(tmp_path / "pirate", rank=8, seed=1))
    await report_of(client, "acme.pirate")
    gone = [await client.delete_adapter("acme.pirate") for _ in range(2)]

    assert gone == [True, True]
    assert (await client.state()).adapters == ()
    assert replica.complete(model="acme.pirate", **GREEDY).status_code == 404


async def test_a_new_revision_takes_the_name(client: RuntimeClient, replica: Replica, tmp_path: Path) -> None:
    first, second = (saved(tmp_path / str(seed), rank=seed, seed=seed) for seed in (4, 9))
    texts = []
    for artifact in (first, second, first):
        await client.put_adapter("acme.pirate", artifact)
        await report_of(client, "acme.pirate", ready(artifact))
        texts.append(replica.complete(model="acme.pirate", **GREEDY).json()["choices"][0]["text"])

    assert texts[0] == texts[2] != texts[1]
    assert [report.revision for report in (await client.state()).adapters] == [first.revision]


async def test_an_unload_waits_for_running_requests(client: RuntimeClient, replica: Replica, tmp_path: Path) -> None:
    await client.put_adapter("acme.pirate", saved(tmp_path / "pirate", rank=8, seed=1))
    await report_of(client, "acme.pirate")
    body = {**GREEDY, "model": "acme.pirate", "max_tokens": 240, "n": 8}
    asking = asyncio.create_task(asyncio.to_thread(replica.complete, **body))
    await report_of(client, "acme.pirate", lambda report: report.running > 0)
    gone = await client.delete_adapter("acme.pirate")
    answer = await asking

    assert answer.json()["usage"]["completion_tokens"] == 8 * 240
    assert gone or await client.delete_adapter("acme.pirate")
    assert (await client.state()).adapters == ()


async def test_an_older_epoch_is_refused_and_changes_nothing(client: RuntimeClient, tmp_path: Path) -> None:
    artifact = saved(tmp_path / "pirate", rank=8, seed=1)
    old = client.epoch
    client.epoch = old + 1
    await client.put_adapter("acme.pirate", artifact)
    await report_of(client, "acme.pirate")
    client.epoch = old
    calls = (
        lambda: client.put_adapter("acme.other", artifact),
        lambda: client.delete_adapter("acme.pirate"),
        lambda: client.drain(),
    )
    for call in calls:
        with pytest.raises(errors.StaleEpoch, match=f"epoch {old} is over"):
            await call()
    state = await client.state()
    client.epoch = old + 1

    assert (state.epoch, state.phase) == (old + 1, "Ready")
    assert [report.id for report in state.adapters] == ["acme.pirate"]


async def test_a_wrong_token_is_refused(replica: Replica) -> None:
    async with RuntimeClient(replica.admin_url, "wrong") as stranger:
        with pytest.raises(errors.Unauthorized):
            await stranger.state()
        with pytest.raises(errors.Unauthorized):
            await stranger.drain()


def unlike_its_digest(folder: Path) -> Artifact:
    return with_digest(saved(folder, rank=8), "adapter_model.safetensors", "0" * 64)


def unlike_its_revision(folder: Path) -> Artifact:
    return replace(saved(folder, rank=8), revision="sha256:" + "0" * 64)


def of_another_model(folder: Path) -> Artifact:
    return saved(folder, random_adapter(replace(CONFIG, hidden_size=96)))


def vanished(folder: Path) -> Artifact:
    artifact = saved(folder, rank=8)
    (folder / "adapter_model.safetensors").unlink()
    return artifact


@pytest.mark.parametrize(("make", "reason", "says"), [
    (unlike_its_digest, "DigestMismatch", "adapter_model.safetensors has SHA-256"),
    (unlike_its_revision, "DigestMismatch", "the files make sha256:"),
    (of_another_model, "InvalidAdapter", "q_proj.lora_A.weight has shape [8, 96]"),
    (lambda folder: saved(folder, rank=129), "RankTooHigh", "rank 129, above this base model's maximum of 128"),
    (too_large, "NoRoom", "raise engine.memory"),
    (vanished, "FetchFailed", "adapter_model.safetensors: No such file"),
])  # fmt: skip
async def test_a_refused_load_stays_in_the_state_with_its_reason(
    client: RuntimeClient, tmp_path: Path, make: Callable[[Path], Artifact], reason: str, says: str
) -> None:
    artifact = make(tmp_path / "bad")
    accepted = await client.put_adapter("acme.bad", artifact)
    report = await report_of(client, "acme.bad")

    assert accepted == "Loading"
    assert (report.state, report.reason, report.revision) == ("Failed", reason, artifact.revision)
    assert says in report.message
    assert await client.delete_adapter("acme.bad")


@pytest.mark.parametrize(("make", "kind"), [
    (unlike_its_digest, errors.AdapterRefused),
    (of_another_model, errors.AdapterRefused),
    (lambda folder: saved(folder, rank=129), errors.AdapterRefused),
    (too_large, errors.NoRoom),
    (vanished, errors.FetchFailed),
])  # fmt: skip
async def test_a_load_that_is_waited_for_is_refused_by_a_status_that_the_client_knows(
    client: RuntimeClient, tmp_path: Path, make: Callable[[Path], Artifact], kind: type[errors.RuntimeRefused]
) -> None:
    artifact = make(tmp_path / "bad")
    with pytest.raises(kind) as refused:
        await client.put_adapter("acme.bad?wait=20", artifact)

    assert type(refused.value) is kind
    assert refused.value.reason == (await report_of(client, "acme.bad")).reason


async def test_an_adapter_larger_than_the_pool_is_told_what_it_needs_and_what_there_is(
    client: RuntimeClient, replica: Replica, tmp_path: Path
) -> None:
    """The pool has 128 pages of 8 KiB, of which a full context of 256 tokens takes 16."""
    artifact = too_large(tmp_path / "large")
    with pytest.raises(errors.NoRoom) as refused:
        await client.put_adapter("acme.large?wait=20", artifact)
    needed = int(str(refused.value).partition(" needs ")[2].split()[0])

    assert needed > 112
    assert refused.value.status == 507
    assert f"needs {needed} pages ({needed * 8192} bytes)" in str(refused.value)
    assert "of the pool's 128 pages, 112 (917504 bytes) are left" in str(refused.value)
    assert f"raise engine.memory to {(needed + 16) * 8192} bytes" in str(refused.value)
    assert replica.complete(model="tiny", **GREEDY).status_code == 200


async def test_a_load_that_is_waited_for_answers_as_the_contract_says(
    client: RuntimeClient, replica: Replica, tmp_path: Path, examples: dict[str, Any]
) -> None:
    artifact = saved(tmp_path / "pirate", rank=8, seed=1)
    files = [{"name": f.name, "url": f.url, "sha256": f.sha256, "size": f.size} for f in artifact.files]
    body = {"revision": artifact.revision, "pinned": False, "files": files}
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Lorafleet-Epoch": str(client.epoch)}
    async with httpx.AsyncClient(base_url=replica.admin_url, headers=headers, trust_env=False) as http:
        response = await http.put("/admin/adapters/acme.pirate", params={"wait": "20"}, json=body, timeout=30)

    assert shape(body) == shape(examples["order"])
    assert response.status_code == 200
    assert response.json().keys() == {"id", "revision", "state", "rank", "pages", "bytes", "targets"}
    assert response.json()["targets"] == ["q_proj", "v_proj"]


async def test_the_state_has_the_fields_of_the_contract(
    client: RuntimeClient, replica: Replica, tmp_path: Path, examples: dict[str, Any]
) -> None:
    await client.put_adapter("acme.pirate", saved(tmp_path / "pirate", rank=8, seed=1))
    await report_of(client, "acme.pirate")
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    state = httpx.get(f"{replica.admin_url}/admin/state", headers=headers, trust_env=False).json()

    assert shape(state) == shape(examples["state"])
    assert state["phase"] in words(examples["state"]["phase"])
    assert state["adapters"][0]["state"] in words(examples["state"]["adapters"][0]["state"])
    assert state["model"]["servedName"] == "tiny"


async def test_an_adapter_on_a_volume_is_described_and_loads_from_there(
    client: RuntimeClient, replica: Replica
) -> None:
    on_disk = saved(replica.artifacts / "weights" / "team" / "pirate", rank=8, seed=1)
    files = await client.describe_artifact("weights/team/pirate")
    assert files == on_disk.files
    await client.put_adapter("acme.pirate", Artifact(on_disk.revision, files))
    assert (await report_of(client, "acme.pirate")).state == "Ready"
    with pytest.raises(errors.RuntimeRefused) as refusal:
        await client.describe_artifact("weights/nobody")
    assert (refusal.value.status, refusal.value.code) == (404, "not_found")


async def test_a_small_file_may_come_with_the_order(client: RuntimeClient, tmp_path: Path) -> None:
    artifact = saved(tmp_path / "pirate", rank=8, seed=1)
    config, weights = artifact.files
    content = base64.b64encode((tmp_path / "pirate" / config.name).read_bytes()).decode()
    inline = replace(config, url=f"data:;base64,{content}")
    await client.put_adapter("acme.pirate", replace(artifact, files=(inline, weights)))
    assert (await report_of(client, "acme.pirate")).state == "Ready"


async def test_an_unchanged_state_costs_a_304_and_a_change_is_seen(client: RuntimeClient, tmp_path: Path) -> None:
    first, again = await client.state(), await client.state()
    await client.put_adapter("acme.pirate", saved(tmp_path / "pirate", rank=8, seed=1))
    await report_of(client, "acme.pirate")
    changed: RuntimeState = await client.state()

    assert again is first
    assert changed is not first
    assert changed.incarnation == first.incarnation
    assert changed.pages_total == 128


async def test_a_drain_lets_running_requests_finish_and_takes_no_more(tmp_path: Path) -> None:
    """On a replica of its own: there is no way back from a drain."""
    with running(tmp_path) as replica:
        async with RuntimeClient(replica.admin_url, ADMIN_TOKEN) as client:
            body = {**GREEDY, "model": "tiny", "max_tokens": 240, "n": 8}
            asking = asyncio.create_task(asyncio.to_thread(replica.complete, **body))
            deadline = time.monotonic() + 20
            while not (await client.state()).running:
                assert time.monotonic() < deadline, "the request never ran"
            await client.drain()
            late = replica.complete(model="tiny", **GREEDY)
            phase = (await client.state()).phase
            ready = httpx.get(f"{replica.url}/ready", trust_env=False)
            answer = await asking

    assert answer.json()["usage"]["completion_tokens"] == 8 * 240
    assert phase == "Draining"
    assert (late.status_code, late.json()["error"]["code"], ready.status_code) == (503, "draining", 503)
    assert late.headers["retry-after"].isdigit()
