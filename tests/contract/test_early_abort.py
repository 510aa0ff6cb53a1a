"""A real runtime under overload: a first token in time, or 503 with the time to come back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from lorafleet_operator.core.fairness import fairness_arguments
from tests.contract.replica_kit import ADMIN_TOKEN, SERVING_TOKEN, Replica, running

pytestmark = [pytest.mark.slow, pytest.mark.alone]

BODY = {"model": "tiny", "prompt": [65, 66], "max_tokens": 200, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    """One seat, and a deadline far below what an answer takes."""
    arguments = fairness_arguments({"policy": "VTC", "earlyAbort": {"ttftSeconds": 0.05}})
    with running(tmp_path_factory.mktemp("replica"), "--threads", "1", "--max-num-seqs", "1", *arguments) as replica:
        yield replica


def asked(replica: Replica, stream: bool) -> httpx.Response:
    headers = {"Authorization": f"Bearer {SERVING_TOKEN}", "Lorafleet-Tenant": "acme"}
    body = {**BODY, "stream": stream}
    return httpx.post(f"{replica.url}/v1/completions", json=body, headers=headers, timeout=60, trust_env=False)


@pytest.mark.parametrize("stream", [False, True])
def test_who_cannot_be_served_in_time_gets_503_and_when_to_come_back(replica: Replica, stream: bool) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: asked(replica, stream), range(8)))

    refused = [answer for answer in answers if answer.status_code == 503]
    assert refused
    for answer in refused:
        assert answer.json()["error"]["code"] == "slo_unattainable"
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
    served = [answer for answer in answers if answer.status_code == 200]
    assert len(served) + len(refused) == 8
    assert served
    assert all("error" not in answer.text for answer in served)


def test_the_admin_port_and_the_metrics_count_them(replica: Replica) -> None:
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: asked(replica, False), range(4)))
    token = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    state = httpx.get(f"{replica.admin_url}/admin/state", headers=token, trust_env=False)
    metrics = httpx.get(f"{replica.url}/metrics", trust_env=False).text

    refused = sum(answer.status_code == 503 for answer in answers)
    assert json.loads(state.content)["counters"]["earlyAborts"] >= refused > 0
    [line] = [line for line in metrics.splitlines() if line.startswith("lorafleet_fairness_aborted_total{")]
    assert 'tenant="acme"' in line
    assert float(line.split()[-1]) >= refused
