"""A step that fails as a GPU's does: the engine ends and says why, another one takes its place, and clients notice
nothing. Real processes: a gateway, a replica, its engines."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e import tiny_fleet
from tests.e2e.dying_engine import FAULT_ONCE, POISON
from tests.e2e.fleet_kit import wait_until
from tests.e2e.streams import LONG, Answer, complete
from tests.gateway.gateway_kit import KEY, adapter, fleet_document, placement, tenant, write

pytestmark = [pytest.mark.slow, pytest.mark.alone]

BASE, ADAPTER = "smol-135m", "pirate"
PROMPT = "Once upon a time"
COMMAND = (sys.executable, "-m")
PORT = r'"port": (\d+)'


@dataclass
class Fleet:
    """One replica behind one gateway; `fault` makes the next mixed step fail."""

    gateway: str
    admin: str
    log: Path
    fault: Path
    process: subprocess.Popen[bytes]

    def client(self, retries: int = 0) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.gateway}/v1", api_key=KEY, max_retries=retries, timeout=120)

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.admin}/admin/state", trust_env=False).json()
        return found

    def serves(self) -> bool:
        now = self.state()
        return now["phase"] == "Ready" and [a["state"] for a in now["adapters"]] == ["Ready"]

    def failures(self) -> list[str]:
        """What each engine that ended said, in order."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line["reason"] for line in lines if line["event"] == "the engine is gone"]


@contextlib.contextmanager
def process(log: Path, *command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as sink:
        started = subprocess.Popen(
            [*COMMAND, *command, "--log-format", "json", "--exit-with-parent"],
            stdin=subprocess.PIPE, stdout=sink, stderr=sink, env={**os.environ, **environment},
        )  # fmt: skip
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        assert started.stdin is not None
        started.stdin.close()


def said(log: Path, pattern: str) -> str:
    """What a log says, once it does."""
    wait_until(lambda: re.search(pattern, log.read_text()), 60, pattern)
    found = re.search(pattern, log.read_text())
    assert found is not None
    return found[1]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    files, documents, log = tiny_fleet.write(tmp_path / "files"), tmp_path / "documents", tmp_path / "log"
    documents.mkdir()
    serve = [
        "tests.e2e.dying_engine", "serve", "--model", str(files / "model"), "--served-name", BASE, "--port", "0",
        "--admin-port", "0", "--dtype", "float32", "--memory", "64Mi", "--threads", "1",
        "--adapter", f"acme.{ADAPTER}={files / 'adapters' / 'acme-alpha'}",
    ]  # fmt: skip
    fault = tmp_path / "fault"
    with process(log, *serve, **{FAULT_ONCE: str(fault)}) as replica:
        url, admin = (said(log, rf'"{port}": "(http[^"]+)"') for port in ("serving", "admin"))
        made = Fleet("", admin, log, fault, replica)
        wait_until(made.serves, 60, "the replica")
        [loaded] = made.state()["adapters"]
        rows = [{"name": "smol-0", "incarnation": "", "url": url, "state": "Ready"}]
        held = adapter(loaded["id"], [placement("smol-0", loaded["revision"])], revision=loaded["revision"])
        write(documents, "models.smol.json", fleet_document(rows, [held]))
        write(documents, "tenants.json", {"version": 1, "generation": 1, "tenants": [tenant("acme", KEY)]})
        gateway = ["lorafleet_gateway", "serve", "--fleet", str(documents), "--port", "0"]
        with process(tmp_path / "gateway.log", *gateway):
            made.gateway = f"http://127.0.0.1:{said(tmp_path / 'gateway.log', PORT)}"
            wait_until(lambda: httpx.get(f"{made.gateway}/ready", trust_env=False).is_success, 60, "the gateway")
            yield made


def test_a_step_that_fails_ends_an_engine_and_no_answer(fleet: Fleet) -> None:
    before = fleet.state()
    with fleet.client() as client, ThreadPoolExecutor(3) as pool:
        expected = {model: complete(client, model, PROMPT) for model in (BASE, ADAPTER)}
        fleet.fault.touch()
        streams = {model: pool.submit(complete, client, model, PROMPT) for model in (BASE, ADAPTER)}
        whole = pool.submit(lambda: client.completions.create(model=ADAPTER, prompt=PROMPT, **LONG))
        answers = {model: stream.result(120) for model, stream in streams.items()}
        text = whole.result(120).choices[0].text

    assert not fleet.fault.exists()
    assert answers == {model: alike(expected[model], answers[model]) for model in answers}
    assert text == expected[ADAPTER].text
    wait_until(fleet.serves, 60, "the next engine")
    assert fleet.state()["incarnation"] != before["incarnation"]
    [reason] = fleet.failures()
    assert reason.startswith("a step on cpu failed: AcceleratorError: CUDA error: an illegal memory access was enco")
    assert re.search(r"\(it had [23] rows, \d of them decoding, \d+ tokens, 1 adapter, \d of them being co", reason)
    assert "CUDA_LAUNCH_BLOCKING=1" in reason
    assert "Traceback" in fleet.log.read_text()


def alike(expected: Answer, got: Answer) -> Answer:
    """What was expected, under the id of the answer that came."""
    return Answer(
        expected.text, expected.token_ids, expected.prompt_token_ids, expected.finish_reason, ids=set(list(got.ids)[:1])
    )


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_breaks_every_step_costs_three_engines_and_nobody_else_an_answer(
    fleet: Fleet, stream: bool
) -> None:
    with fleet.client() as client, fleet.client(retries=2) as poisoner, ThreadPoolExecutor(5) as pool:
        expected = complete(client, ADAPTER, PROMPT)
        others = [pool.submit(complete, client, ADAPTER, PROMPT) for _ in range(4)]
        with pytest.raises(openai.InternalServerError, match="3 replicas of `smol-135m` in a row were lost") as error:
            poisoner.completions.create(model=BASE, prompt=POISON, stream=stream, **LONG)
        answers = [other.result(120) for other in others]

    assert error.value.status_code == 502
    assert [answer.token_ids for answer in answers] == [expected.token_ids] * 4
    assert len(fleet.failures()) == 3
    wait_until(fleet.serves, 60, "the fourth engine")
    assert fleet.process.poll() is None
