"""A fleet of real processes on a tiny model: what clients see while files change and processes die."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import openai
import pytest

from tests.e2e import tiny_fleet
from tests.e2e.fleet_kit import Fleet, alive, wait_until
from tests.e2e.streams import LONG, Traffic, complete, complete_after, complete_async

pytestmark = [pytest.mark.slow, pytest.mark.alone]

PROMPT = "Once upon a time"
EFFECTIVE_SECONDS = 2.0  # between a saved file and its effect for clients


def first_token(fleet: Fleet, tenant: str, model: str) -> str:
    """A short answer, or the code of the error that came in its place."""
    with fleet.client(tenant) as client:
        try:
            return client.completions.create(model=model, prompt=PROMPT, max_tokens=4, temperature=0).choices[0].text
        except openai.APIStatusError as error:
            return str(error.code)


def names(fleet: Fleet, tenant: str) -> set[str]:
    with fleet.client(tenant) as client:
        return {model.id for model in client.models.list()}


async def test_the_base_and_every_adapter_stream_at_once(tiny: Fleet) -> None:
    clients = {tenant: tiny.async_client(tenant) for tenant in tiny.keys}
    asked = [(tenant, model) for tenant, models in tiny_fleet.MODELS.items() for model in models]
    together = await asyncio.gather(*(complete_async(clients[t], m, PROMPT) for t, m in asked))
    alone = [await complete_async(clients[tenant], model, PROMPT) for tenant, model in asked]
    for client in clients.values():
        await client.close()

    texts = {f"{t}/{m}": answer.text for (t, m), answer in zip(asked, together, strict=True)}
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert {len(answer.token_ids) for answer in together} == {400}
    assert texts["acme/tiny"] == texts["globex/tiny"]
    assert len(set(texts.values())) == len(asked) - 1  # all but the base model, which both asked, differ


def test_each_tenant_sees_its_own_models_only(tiny: Fleet) -> None:
    assert {tenant: names(tiny, tenant) for tenant in tiny.keys} == {
        "acme": {"tiny", "alpha", "helper"},
        "globex": {"tiny", "helper"},
    }
    assert first_token(tiny, "globex", "alpha") == "model_not_found"
    assert first_token(tiny, "acme", "acme.alpha") == "model_not_found"  # the id on the wire is no client's name


def test_an_added_an_edited_and_a_removed_file_take_effect_within_two_seconds(tiny: Fleet) -> None:
    before, pids = tiny.replicas(), {process.pid for process in tiny.children()}
    tiny_fleet.weights(tiny.folder, "acme", "late", rank=2, seed=9)
    seconds = {}
    with tiny.file("late.yaml", tiny_fleet.text(tiny_fleet.adapter("acme", "late"))):
        seconds["added"] = wait_until(lambda: "late" in names(tiny, "acme"))
        assert first_token(tiny, "acme", "late") not in ("", "model_not_found")
        with tiny.file("late.yaml", tiny_fleet.text(tiny_fleet.adapter("acme", "late", "later"))):
            seconds["edited"] = wait_until(lambda: "later" in names(tiny, "acme"))
            assert first_token(tiny, "acme", "late") == "model_not_found"
        wait_until(lambda: "late" in names(tiny, "acme"))
    seconds["removed"] = wait_until(lambda: first_token(tiny, "acme", "late") == "model_not_found")

    assert max(seconds.values()) < EFFECTIVE_SECONDS, seconds
    assert tiny.replicas() == before
    assert {process.pid for process in tiny.children()} == pids


@pytest.mark.parametrize(("broken", "says"), [
    (tiny_fleet.text(tiny_fleet.adapter("acme", "alpha", copies={"min": "many"})),
     "acme-alpha.yaml: LoRAAdapter acme/alpha: .spec.copies.min: must be a whole number, not the text 'many'"),
    ("kind: LoRAAdapter\nmetadata: {name: alpha\n", "acme-alpha.yaml: is not YAML: line 3"),
])  # fmt: skip
def test_a_broken_file_costs_one_message_and_nothing_that_serves(tiny: Fleet, broken: str, says: str) -> None:
    told = tiny.said("err").count(says)
    with tiny.file("acme-alpha.yaml", broken):
        wait_until(lambda: tiny.said("err").count(says) > told, what=says)
        tiny_fleet.weights(tiny.folder, "globex", "other", rank=2, seed=11)
        with tiny.file("other.yaml", tiny_fleet.text(tiny_fleet.adapter("globex", "other"))):
            wait_until(lambda: "other" in names(tiny, "globex"))
        everything = {tenant: names(tiny, tenant) for tenant in tiny.keys}

    assert everything["acme"] == {"tiny", "alpha", "helper"}
    assert tiny.said("err").count(says) == told + 1
    wait_until(lambda: "other" not in names(tiny, "globex"))


def test_a_new_revision_takes_over_between_answers_and_never_within_one(tiny: Fleet) -> None:
    before = tiny.replicas()
    seen: list[str] = []
    with tiny.client("acme") as client:
        old = complete(client, "alpha", PROMPT).text
        for rank, seed in ((12, 77), (4, 1)):
            tiny_fleet.weights(tiny.folder, "acme", "alpha", rank=rank, seed=seed)
            last = seen[-1] if seen else old
            deadline = time.monotonic() + 10
            while not seen or seen[-1] == last:
                assert time.monotonic() < deadline, "the files that were replaced are not noticed"
                seen.append(complete(client, "alpha", PROMPT).text)
        settled = complete(client, "alpha", PROMPT).text

    assert settled == seen[-1] == old
    assert len(set(seen)) == 2  # an answer is the old revision's or the new one's, never of both
    assert tiny.replicas() == before


def metric(fleet: Fleet, name: str) -> float:
    """The sum of one of the gateway's metrics over its labels."""
    with fleet.http("acme") as http:
        return sum(map(float, re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", http.get("/metrics").text, re.MULTILINE)))


@pytest.mark.parametrize("killed", ["runtime", "engine"])
def test_a_killed_runtime_comes_back_and_no_stream_breaks(tiny: Fleet, killed: str) -> None:
    [before] = tiny.replicas().values()
    resumed = metric(tiny, "lorafleet_gateway_resumes_total")
    with tiny.client("acme") as client:
        expected = {model: complete(client, model, PROMPT) for model in tiny_fleet.MODELS["acme"]}
        patient = client.with_options(max_retries=10)  # it is told when to come back
        for _ in range(5):  # all of an answer may be on its way before the kill
            interrupted = complete_after(patient, "helper", PROMPT, getattr(tiny, killed).kill)
            if metric(tiny, "lorafleet_gateway_resumes_total") > resumed:
                break
        after = {model: complete(patient, model, PROMPT) for model in tiny_fleet.MODELS["acme"]}

    assert interrupted.text == expected["helper"].text
    assert interrupted.token_ids == expected["helper"].token_ids
    assert interrupted.finish_reason == "length"
    assert len(interrupted.ids) == 1
    assert {m: a.text for m, a in after.items()} == {m: a.text for m, a in expected.items()}
    wait_until(lambda: tiny.replicas() and before not in tiny.replicas().values())
    assert metric(tiny, "lorafleet_gateway_resumes_total") > resumed


def test_no_client_hangs_when_its_runtime_is_killed(tiny: Fleet) -> None:
    """A whole answer is asked for anew; a stream of two choices, which cannot be resumed, ends with an error."""
    with tiny.client("acme") as client, ThreadPoolExecutor(1) as pool:
        ask = partial(client.completions.create, model="alpha", prompt=PROMPT, stream=False, n=4, **LONG)
        before = ask()
        for _ in range(5):  # on a busy machine one may have ended before both are seen
            whole = pool.submit(ask)
            stream = client.completions.create(model="alpha", prompt=PROMPT, stream=True, n=2, **LONG)
            next(stream)
            wait_until(lambda: metric(tiny, "lorafleet_gateway_requests_in_flight") == 2 or whole.done())  # noqa: B023
            if not whole.done():
                break
            stream.close()
        tiny.runtime.kill()
        killed = time.monotonic()
        with pytest.raises(openai.APIError, match="several choices"):
            for _ in stream:
                pass
        broken_after = time.monotonic() - killed
        answer = whole.result(40)

    assert broken_after < 1.0
    assert [choice.text for choice in answer.choices] == [choice.text for choice in before.choices]


def test_a_request_while_the_runtime_is_away_is_answered_or_refused_within_its_deadline(tiny: Fleet) -> None:
    tiny.runtime.kill()
    started = time.monotonic()
    code = first_token(tiny, "acme", "alpha")

    assert time.monotonic() - started < 8  # five to find a replica, and what an answer takes
    assert code != "model_not_found"
    wait_until(lambda: first_token(tiny, "acme", "alpha") not in ("model_not_ready", "replica_failed"), 60)


def test_a_killed_gateway_comes_back(tiny: Fleet) -> None:
    before, gateway = tiny.replicas(), tiny.gateway
    gateway.kill()
    wait_until(lambda: tiny.processes("lorafleet_gateway").keys() - {gateway.pid})

    def answers() -> bool:
        try:
            return first_token(tiny, "acme", "alpha") != ""
        except openai.APIConnectionError:
            return False

    wait_until(answers)
    assert tiny.replicas() == before


def test_replicas_grow_and_shrink_without_a_failed_request(tiny: Fleet) -> None:
    before = tiny.replicas()
    with tiny.client("acme") as client, Traffic(client, "alpha") as traffic:
        with tiny.file("base.yaml", tiny_fleet.text(tiny_fleet.base_model(replicas=2))):
            wait_until(lambda: len(tiny.replicas()) == 2, 60, "the second replica")
            both = list(tiny.processes("lorafleet_runtime").values())
        wait_until(lambda: sum(map(alive, both)) == 1, 30, "the second replica's end")
        wait_until(lambda: len(tiny.document()["replicas"]) == 1)

    assert len(both) == 2
    assert tiny.replicas() == before
    assert traffic.errors == []
    assert traffic.answers > 10


def test_a_parent_killed_with_9_leaves_no_process(own_tiny: Fleet) -> None:
    children = own_tiny.children()
    own_tiny.process.kill()
    own_tiny.process.wait()
    wait_until(lambda: not any(map(alive, children)), 10, "the children's end")

    assert len(children) == 3  # the gateway, the runtime and its engine
