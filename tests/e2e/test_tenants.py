"""Tenants of a fleet of real processes: quotas, keys and counters, as clients and their owners see them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e import tiny_fleet
from tests.e2e.fleet_kit import Fleet, wait_until
from tests.e2e.streams import LONG, complete, complete_after

pytestmark = [pytest.mark.slow, pytest.mark.alone]

PROMPT = "Once upon a time"


def late(name: str, **quota: int) -> str:
    """A tenant with a quota, and its key, sk-NAME."""
    spec = {
        "models": [{"namespace": "models", "name": "tiny"}], "quota": quota,
        "apiKeys": [{"secretRef": {"namespace": name, "name": "key"}}],
    }  # fmt: skip
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key", "namespace": name}}
    tenant = tiny_fleet.document("Tenant", name, "", spec)
    return tiny_fleet.text(tenant, {**secret, "stringData": {"key": f"sk-{name}"}})


def client(fleet: Fleet, name: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{fleet.url}/v1", api_key=f"sk-{name}", max_retries=0, timeout=60)


def known(fleet: Fleet, name: str) -> bool:
    headers = {"Authorization": f"Bearer sk-{name}"}
    return httpx.get(f"{fleet.url}/v1/models", headers=headers, trust_env=False).status_code == 200


def counters(fleet: Fleet) -> list[dict[str, float]]:
    """The tenants' counters as each replica knows them."""
    found = []
    for row in fleet.document()["replicas"]:
        families = text_string_to_metric_families(httpx.get(f"{row['url']}/metrics", trust_env=False).text)
        samples = [sample for family in families for sample in family.samples]
        found.append({s.labels["tenant"]: s.value for s in samples if s.name == "lorafleet_fairness_counter"})
    return found


def test_a_quota_answers_429_with_the_limits_name_and_when_to_come_back(tiny: Fleet) -> None:
    with tiny.file("late.yaml", late("initech", requestsPerMinute=2)), client(tiny, "initech") as asking:
        wait_until(lambda: known(tiny, "initech"))
        for _ in range(2):
            asking.completions.create(model="tiny", prompt=PROMPT, max_tokens=2)
        with pytest.raises(openai.RateLimitError) as refused:
            asking.completions.create(model="tiny", prompt=PROMPT, max_tokens=2)

    assert (refused.value.code, refused.value.param) == ("quota_exceeded", "requestsPerMinute")
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 30


def test_a_tenant_that_is_deleted_finishes_its_stream_and_is_refused_after_that(tiny: Fleet) -> None:
    written: list[Any] = [tiny.file("late.yaml", late("hooli"))]
    written[0].__enter__()
    wait_until(lambda: known(tiny, "hooli"))

    def delete() -> None:
        written.pop().__exit__(None, None, None)
        wait_until(lambda: not known(tiny, "hooli"))

    with client(tiny, "hooli") as asking:
        answer = complete_after(asking, "tiny", PROMPT, delete)
        with pytest.raises(openai.AuthenticationError):
            asking.completions.create(model="tiny", prompt=PROMPT, max_tokens=2)

    assert len(answer.token_ids) == LONG["max_tokens"]
    assert answer.finish_reason == "length"


def test_replicas_come_to_know_what_each_other_gave(own_tiny: Fleet) -> None:
    (own_tiny.folder / "base.yaml").write_text(tiny_fleet.text(tiny_fleet.base_model(replicas=2)))
    wait_until(lambda: len(own_tiny.replicas()) == 2, 60)
    for tenant in own_tiny.keys:
        with own_tiny.client(tenant) as asking:
            for _ in range(3):
                complete(asking, "tiny", PROMPT)

    wait_until(lambda: counters(own_tiny)[0] == counters(own_tiny)[1] and len(counters(own_tiny)[0]) == 2)
    each = 3 * (len(PROMPT) + 2 * LONG["max_tokens"])
    assert sum(counters(own_tiny)[0].values()) >= 2 * each  # and what a newcomer was lifted by

    argv = [sys.executable, "-m", "lorafleet_operator", "top", "tenants", "--once", "--state-dir", str(own_tiny.state)]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert "models/tiny" in shown
    assert {line.split()[0] for line in shown.splitlines()} >= {"TENANT", *own_tiny.keys}
