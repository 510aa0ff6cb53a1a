"""Every kind of bad input, end to end: one message that says what and where, and everything else goes on serving."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.e2e import bad_fleet, tiny_fleet
from tests.e2e.bad_fleet import ARTIFACTS, OBJECTS, BadArtifact, BadObject
from tests.e2e.fleet_kit import Fleet, run_cli, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.alone]

CHAT = {"model": "alpha", "messages": [{"role": "user", "content": "hello"}]}
TEXT = {"model": "alpha", "prompt": "hello"}


@pytest.fixture(scope="module")
def spoilt(shared_tiny: Fleet) -> Iterator[Fleet]:
    """The tiny fleet with all bad objects and bad artifacts in its folder, once it has judged each."""
    tiny = shared_tiny
    tiny_fleet.wait_until_settled(tiny)
    bad_fleet.write_artifacts(tiny.folder)
    documents = [bad.document for bad in (*OBJECTS, *ARTIFACTS)]
    with tiny.file("spoilt.yaml", tiny_fleet.text(*documents)):
        wait_until(lambda: all(status(tiny, bad.name).get("reason") == bad.reason for bad in ARTIFACTS), 20)
        yield tiny


@pytest.fixture(scope="module")
def planned(spoilt: Fleet) -> subprocess.CompletedProcess[str]:
    """What `lorafleet plan` says of the same folder."""
    return run_cli("plan", "-f", str(spoilt.folder), "--state-dir", str(spoilt.state))


def status(fleet: Fleet, name: str) -> dict[str, Any]:
    return fleet.condition("LoRAAdapter", name)


@pytest.mark.parametrize("bad", OBJECTS, ids=lambda bad: bad.name)
def test_a_bad_object_has_one_message_with_its_file_name_and_field(
    spoilt: Fleet, planned: subprocess.CompletedProcess[str], bad: BadObject
) -> None:
    told = [line for line in spoilt.said("err").splitlines() if f"LoRAAdapter acme/{bad.name}: " in line]
    lines = [line for line in planned.stdout.splitlines() if f"LoRAAdapter acme/{bad.name}: " in line]

    assert len(told) == len(lines) == 1
    assert bad.says in told[0]
    assert bad.says in lines[0]
    assert planned.returncode == 1
    assert status(spoilt, bad.name)["reason"] == bad.reason
    assert bad.says in status(spoilt, bad.name)["message"]
    if bad.reason == "Invalid":  # a mistake in the text; a rule between objects names the objects, not the file
        assert "spoilt.yaml: " in lines[0]


@pytest.mark.parametrize("bad", ARTIFACTS, ids=lambda bad: bad.name)
def test_a_bad_artifact_is_refused_with_its_reason_in_the_status(spoilt: Fleet, bad: BadArtifact) -> None:
    condition = status(spoilt, bad.name)

    assert (condition["status"], condition["reason"]) == ("False", bad.reason)
    assert bad.says in condition["message"]


def test_get_shows_why_each_adapter_is_not_served(spoilt: Fleet) -> None:
    shown = run_cli("get", "lad", "-o", "wide", "--state-dir", str(spoilt.state)).stdout.splitlines()
    rows = {row.split()[1]: row for row in shown[1:]}

    assert {bad.name for bad in ARTIFACTS if bad.says in rows[bad.name] and bad.reason in rows[bad.name]} == {
        bad.name for bad in ARTIFACTS
    }


async def test_a_model_that_cannot_be_served_is_a_503_at_once_that_says_why(spoilt: Fleet) -> None:
    started = time.monotonic()
    client = spoilt.async_client("acme")
    asked = (client.completions.create(model=bad.name, prompt="hello", max_tokens=4) for bad in ARTIFACTS)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    await client.close()

    assert time.monotonic() - started < 2.0
    errors = {bad.name: answer for bad, answer in zip(ARTIFACTS, answers, strict=True)}
    assert {type(error) for error in errors.values()} == {openai.InternalServerError}
    for bad in ARTIFACTS:
        error = errors[bad.name]
        assert isinstance(error, openai.APIStatusError)
        assert (error.status_code, error.code) == (503, "model_not_ready")
        assert bad.reason in error.message
        assert error.response.headers["retry-after"].isdigit()


def test_all_the_rest_goes_on_serving(spoilt: Fleet) -> None:
    for tenant, models in tiny_fleet.MODELS.items():
        with spoilt.client(tenant) as client:
            assert {model.id for model in client.models.list()} == set(models)
            for model in models:
                answer = client.completions.create(model=model, prompt="hello", max_tokens=4)
                assert answer.choices[0].finish_reason in ("length", "stop")


@pytest.mark.parametrize(("path", "body", "status", "code", "param"), [
    ("chat/completions", {**CHAT, "messages": [{"role": "user", "content": "x" * 600}]},
     400, "context_length_exceeded", "messages"),
    ("completions", {**TEXT, "prompt": "x" * 600}, 400, "context_length_exceeded", "prompt"),
    ("completions", {**TEXT, "prompt": "x" * 500, "max_tokens": 100}, 400, "context_length_exceeded", "max_tokens"),
    ("chat/completions", {**CHAT, "max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    ("chat/completions", {**CHAT, "max_completion_tokens": 0}, 400, "invalid_value", "max_completion_tokens"),
    ("completions", {**TEXT, "max_tokens": -5}, 400, "invalid_value", "max_tokens"),
    ("completions", {**TEXT, "max_tokens": "ten"}, 400, "invalid_value", "max_tokens"),
    ("completions", {**TEXT, "stream": True, "max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    ("completions", {**TEXT, "temperature": 7}, 400, "invalid_value", "temperature"),
    ("completions", {**TEXT, "n": 0}, 400, "invalid_value", "n"),
    ("completions", {**TEXT, "max_tokenz": 7}, 400, "unknown_parameter", "max_tokenz"),
    ("completions", {"model": "alpha"}, 400, "missing_required_parameter", "prompt"),
    ("completions", {"prompt": "hello"}, 400, "missing_field", "model"),
    ("completions", {**TEXT, "model": ["alpha"]}, 400, "invalid_value", "model"),
    ("completions", {**TEXT, "prompt": ""}, 400, "invalid_value", "prompt"),
    ("completions", {**TEXT, "prompt": [999999]}, 400, "invalid_value", "prompt"),
    ("chat/completions", {**CHAT, "messages": []}, 400, "invalid_value", "messages"),
    ("completions", {**TEXT, "resume": {"output_token_ids": [1]}}, 400, "unknown_field", "resume"),
    ("completions", b'{"model": "alpha", "prompt": ', 400, "invalid_json", None),
    ("completions", b"[1, 2]", 400, "invalid_json", None),
    ("completions", b"\xff\xfe", 400, "invalid_json", None),
    ("completions", b"", 400, "invalid_json", None),
    ("completions", {**TEXT, "model": "nobody"}, 404, "model_not_found", "model"),
    ("completions", {**TEXT, "model": "unknown-field"}, 404, "model_not_found", "model"),
    ("embeddings", TEXT, 404, "unknown_url", None),
])  # fmt: skip
def test_a_bad_request_is_refused_at_once_by_its_field(
    spoilt: Fleet, path: str, body: dict[str, Any] | bytes, status: int, code: str, param: str | None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with spoilt.http("acme") as http:
        started = time.monotonic()
        response = http.post(f"/v1/{path}", content=content)
        seconds = time.monotonic() - started
    error = response.json()["error"]

    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert error.keys() == {"message", "type", "param", "code"}
    assert len(error["message"]) > 10
    assert seconds < 1.0


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer sk-nobody"}, {"Authorization": "Basic c2s="}])
@pytest.mark.parametrize("call", [("GET", "/v1/models"), ("POST", "/v1/completions")])
def test_a_missing_or_wrong_key_is_a_401(spoilt: Fleet, header: dict[str, str], call: tuple[str, str]) -> None:
    with httpx.Client(base_url=spoilt.url, trust_env=False) as http:
        response = http.request(*call, headers=header)

    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("announced", [True, False])
def test_ten_megabytes_are_a_413(spoilt: Fleet, announced: bool) -> None:
    body = json.dumps({**TEXT, "prompt": "x" * 10_000_000}).encode()
    slices = (body[start : start + 65536] for start in range(0, len(body), 65536))
    with spoilt.http("acme") as http:
        response = http.post("/v1/completions", content=body if announced else slices)

    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
