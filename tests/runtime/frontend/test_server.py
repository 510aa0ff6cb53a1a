from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from lorafleet_runtime.frontend.scripted_engine import ScriptedEngine
from lorafleet_runtime.frontend.server import create_app
from lorafleet_runtime.frontend.service import Service, Settings
from lorafleet_runtime.protocol import AdapterState, Counters

EOS = 258
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "tiny", "prompt": "hi"}


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_max_tokens_ends_with_length(http: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    answer = (await http.post("/v1/completions", json=TEXT | {"max_tokens": 5})).json()

    assert answer["choices"][0] == {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "length"}
    assert answer["usage"]["completion_tokens"] == 5


async def test_defaults_are_openais(http: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    await http.post("/v1/completions", json=TEXT)
    await http.post("/v1/chat/completions", json=CHAT)

    text, chat = engine.requests
    assert text.sampling.max_tokens == 16
    assert chat.sampling.max_tokens == 256 - len(chat.prompt_token_ids)
    assert chat.sampling.stop_token_ids == (EOS,)
    assert text.sampling.seed != chat.sampling.seed


async def test_logprobs_in_both_formats(http: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    engine.reply = lambda request: [*"é!".encode(), EOS]
    chat = CHAT | {"logprobs": True, "top_logprobs": 2}
    content = (await http.post("/v1/chat/completions", json=chat)).json()["choices"][0]["logprobs"]["content"]
    text = (await http.post("/v1/completions", json=TEXT | {"logprobs": 2})).json()["choices"][0]["logprobs"]

    assert [token["bytes"] for token in content[:3]] == [[0xC3], [0xA9], [0x21]]
    assert [token["token"] for token in content] == ["\ufffd", "\ufffd", "!", "<|im_end|>"]
    assert [len(token["top_logprobs"]) for token in content] == [2, 2, 2, 2]
    assert content[2]["top_logprobs"][1] == {"token": '"', "logprob": -1.25, "bytes": [0x22]}
    assert text["tokens"] == ["\ufffd", "\ufffd", "!", "<|im_end|>"]
    assert text["text_offset"] == [0, 0, 1, 2]
    assert text["top_logprobs"][2] == {"!": -0.25, '"': -1.25}


@pytest.mark.parametrize(
    ("changes", "param", "code"),
    [
        ({"prompt": "x" * 256}, "prompt", "context_length_exceeded"),
        ({"prompt": "x" * 250, "max_tokens": 7}, "max_tokens", "context_length_exceeded"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": [1, 264]}, "prompt", "invalid_value"),
        ({"logit_bias": {"264": 1}}, "logit_bias", "invalid_value"),
        ({"stop_token_ids": [999]}, "stop_token_ids", "invalid_value"),
        ({"min_tokens": 17}, "min_tokens", "invalid_value"),
    ],
)
async def test_what_cannot_be_run_is_a_400(
    http: httpx.AsyncClient, changes: dict[str, Any], param: str, code: str
) -> None:
    response = await http.post("/v1/completions", json=TEXT | changes)

    assert response.status_code == 400
    assert (error_of(response)["param"], error_of(response)["code"]) == (param, code)


async def test_too_long_a_prompt_names_both_numbers(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"256 tokens; the prompt has 300"):
        await client.completions.create(model="tiny", prompt="x" * 300)


async def test_a_prompt_that_fills_the_context_but_for_one_token_runs(http: httpx.AsyncClient) -> None:
    answer = (await http.post("/v1/completions", json=TEXT | {"prompt": "x" * 255})).json()

    assert answer["usage"] == {
        "prompt_tokens": 255,
        "completion_tokens": 1,
        "total_tokens": 256,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_models_are_the_base_and_ready_adapters(client: openai.AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.become(adapters=[AdapterState("acme.a", "r1", "Ready"), AdapterState("acme.b", "r1", "Loading")])

    assert [model.id async for model in client.models.list()] == ["tiny", "acme.a"]
    assert (await client.models.retrieve("acme.a")).id == "acme.a"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("acme.b")


@pytest.mark.parametrize(
    ("states", "status", "code"),
    [
        ([], 404, "model_not_found"),
        (["Loading"], 503, "adapter_loading"),
        (["Failed"], 404, "model_not_found"),
        (["Draining"], 404, "model_not_found"),
        (["Draining", "Loading"], 503, "adapter_loading"),
        (["Ready", "Loading"], 200, ""),
    ],
)
async def test_an_adapter_answers_as_its_state_allows(
    http: httpx.AsyncClient, engine: ScriptedEngine, states: list[str], status: int, code: str
) -> None:
    engine.become(adapters=[AdapterState("acme.a", f"r{i}", state) for i, state in enumerate(states)])
    response = await http.post("/v1/chat/completions", json=CHAT | {"model": "acme.a"})

    assert response.status_code == status
    if code:
        assert error_of(response)["code"] == code
        assert ("retry-after" in response.headers) == (status == 503)
    else:
        assert engine.requests[0].adapter == "acme.a"
        assert response.json()["model"] == "acme.a"


async def test_a_replica_that_is_not_ready_says_when_to_come_back(
    http: httpx.AsyncClient, engine: ScriptedEngine, service: Service
) -> None:
    assert (await http.get("/ready")).status_code == 200
    service.draining = True
    draining = await http.post("/v1/chat/completions", json=CHAT)
    service.draining = False
    engine.become(phase="Loading", model=None)
    loading = await http.post("/v1/chat/completions", json=CHAT)

    assert (draining.status_code, error_of(draining)["code"]) == (503, "draining")
    assert (loading.status_code, error_of(loading)["code"]) == (503, "not_ready")
    assert loading.headers["retry-after"] == "1"
    assert (await http.get("/ready")).status_code == 503
    assert (await http.get("/health")).status_code == 200


async def test_the_serving_token_guards_and_makes_the_gateways_headers_count(
    engine: ScriptedEngine, service: Service
) -> None:
    service.settings = Settings("tiny", serving_token="s3cret")
    transport = httpx.ASGITransport(create_app(service))
    headers = {"Lorafleet-Tenant": "acme", "Lorafleet-Weight": "2.5"}
    async with httpx.AsyncClient(transport=transport, base_url="http://runtime", headers=headers) as http:
        refused = [
            await http.post("/v1/chat/completions", json=CHAT),
            await http.get("/v1/models", headers={"Authorization": "Bearer wrong"}),
        ]
        allowed = await http.post("/v1/chat/completions", json=CHAT, headers={"Authorization": "Bearer s3cret"})
        assert (await http.get("/health")).status_code == 200

    assert [response.status_code for response in refused] == [401, 401]
    assert error_of(refused[0])["code"] == "invalid_api_key"
    assert allowed.status_code == 200
    assert [(r.tenant, r.weight) for r in engine.requests] == [("acme", 2.5)]


async def test_without_a_token_the_gateways_headers_are_ignored(
    http: httpx.AsyncClient, engine: ScriptedEngine
) -> None:
    await http.post("/v1/chat/completions", json=CHAT, headers={"Lorafleet-Tenant": "rich", "Lorafleet-Weight": "99"})

    assert (engine.requests[0].tenant, engine.requests[0].weight) == ("", 1.0)


async def test_metrics_have_vllms_names(http: httpx.AsyncClient, engine: ScriptedEngine) -> None:
    """[AC-23]: of running adapters and, in the newer shape, of loaded ones."""
    guesses = Counters(drafts=3, draft_tokens=12, accepted_tokens=7)
    engine.become(adapters=[AdapterState("acme.a", "r", "Ready", running=1, resident=True)], counters=guesses)
    await http.post("/v1/chat/completions", json=CHAT)
    text = (await http.get("/metrics")).text

    for line in (
        'vllm:num_requests_running{model_name="tiny"} 0.0',
        'vllm:num_requests_waiting{model_name="tiny"} 0.0',
        'vllm:kv_cache_usage_perc{model_name="tiny"} 0.13',
        'vllm:time_to_first_token_seconds_count{model_name="tiny"} 1.0',
        'vllm:request_success_total{finished_reason="stop",model_name="tiny"} 1.0',
        'vllm:generation_tokens_total{model_name="tiny"} 20.0',
        'vllm:e2e_request_latency_seconds_count{model_name="tiny"} 1.0',
        'vllm:spec_decode_num_drafts_total{model_name="tiny"} 3.0',
        'vllm:spec_decode_num_draft_tokens_total{model_name="tiny"} 12.0',
        'vllm:spec_decode_num_accepted_tokens_total{model_name="tiny"} 7.0',
        'lorafleet_pages{model_name="tiny",use="free"} 80.0',
        'lorafleet_adapters_resident{model_name="tiny"} 1.0',
        'vllm:lora_adapter_loaded{adapter_name="acme.a",level="gpu",pinned="false",rank="0"} 1.0',
    ):
        assert line in text.splitlines()
    assert 'vllm:lora_requests_info{max_lora="1",running_lora_adapters="acme.a",waiting_lora_adapters=""}' in text


async def test_bad_bodies_and_paths_have_the_one_error_shape(http: httpx.AsyncClient) -> None:
    malformed = await http.post("/v1/chat/completions", content=b'{"model": ')
    large = await http.post("/v1/chat/completions", content=b" " * (8 * 2**20 + 1))
    nowhere = await http.get("/v1/nothing")
    method = await http.get("/v1/chat/completions")

    responses = (malformed, large, nowhere, method)
    assert [response.status_code for response in responses] == [400, 413, 404, 405]
    codes = [error_of(response)["code"] for response in responses]
    assert codes == ["invalid_json", "request_too_large", "not_found", "method_not_allowed"]
