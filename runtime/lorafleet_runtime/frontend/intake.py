"""From a checked request to what the engine is asked: tokens, bounds, seeds. Knows no streaming."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lorafleet_runtime.errors import ApiError, invalid
from lorafleet_runtime.frontend.schemas import ChatRequest, CompletionRequest, GenerationRequest
from lorafleet_runtime.frontend.service import Service
from lorafleet_runtime.frontend.tenant_board import MAX_TENANT_NAME
from lorafleet_runtime.protocol import AddRequest, ModelInfo, Sampling

_COMPLETION_MAX_TOKENS = 16  # OpenAI's default for the older route
_MAX_PROMPTS = 256
LEAST_WEIGHT = 1e-3


@dataclass(frozen=True, slots=True)
class Job:
    """One client's request: `requests[i]` is choice i. `prompt_tokens` counts each prompt once."""

    kind: Literal["chat", "text"]
    id: str
    created: int
    model: str
    requests: list[AddRequest]
    prompt_tokens: int
    stop: list[str]
    include_stop: bool
    show_special: bool
    logprobs: int
    stream: bool
    include_usage: bool
    return_token_ids: bool
    resumed: list[int] | None = field(default=None)
    constrained_by: str | None = None  # the field that says what the output must be


async def chat_job(request: ChatRequest, service: Service, headers: Mapping[str, str]) -> Job:
    """Raises ApiError: 503 not ready, 404 unknown model, 400 for what cannot be run."""
    model = service.require_ready()
    adapter = service.resolve(request.model)
    messages = [message.plain(index) for index, message in enumerate(request.messages)]
    text = service.tokenizer.chat.render(
        messages,
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        extra=request.chat_template_kwargs,
    )
    # The template writes the special tokens itself.
    prompt = await service.tokenizer.encode_async(text, add_special_tokens=False)
    wanted = request.max_completion_tokens or request.max_tokens
    limits = _Limits(model, wanted, default=None, prompt_param="messages")
    logprobs = request.top_logprobs if request.logprobs else -1
    return _job("chat", request, [prompt], limits, logprobs, adapter, service, headers)


async def completion_job(request: CompletionRequest, service: Service, headers: Mapping[str, str]) -> Job:
    """As `chat_job`, for one or several prompts of text or token ids."""
    model = service.require_ready()
    adapter = service.resolve(request.model)
    if len(request.prompts) > _MAX_PROMPTS:
        raise invalid(f"at most {_MAX_PROMPTS} prompts at once, got {len(request.prompts)}", "prompt")
    if request.resume is not None and len(request.prompts) != 1:
        raise invalid("resume needs a single prompt", "resume")
    prompts = []
    for prompt in request.prompts:
        if isinstance(prompt, str):
            prompt = await service.tokenizer.encode_async(prompt, request.add_special_tokens)
        prompts.append(prompt)
    limits = _Limits(model, request.max_tokens, default=_COMPLETION_MAX_TOKENS, prompt_param="prompt")
    logprobs = -1 if request.logprobs is None else request.logprobs
    return _job("text", request, prompts, limits, logprobs, adapter, service, headers)


@dataclass(frozen=True, slots=True)
class _Limits:
    model: ModelInfo
    wanted: int | None
    default: int | None
    prompt_param: str

    def max_tokens(self, prompt: Sequence[int]) -> int:
        """How many tokens this prompt may be answered with. Raises ApiError 400 `context_length_exceeded`."""
        context, used = self.model.max_model_len, len(prompt)
        if used == 0:
            raise invalid("the prompt is empty; at least one token is needed", self.prompt_param)
        if used >= context:
            raise invalid(
                f"this model's context is {context} tokens; the prompt has {used} and leaves no room",
                self.prompt_param,
                "context_length_exceeded",
            )
        if self.wanted is not None and used + self.wanted > context:
            raise invalid(
                f"this model's context is {context} tokens; {used} of the prompt and {self.wanted} of "
                f"max_tokens make {used + self.wanted}",
                "max_tokens",
                "context_length_exceeded",
            )
        room = context - used
        return self.wanted or min(self.default or room, room)

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        vocabulary = self.model.vocab_size
        if ids and max(ids) >= vocabulary:
            raise invalid(f"token id {max(ids)} is beyond the vocabulary of {vocabulary}", param)


def _job(
    kind: Literal["chat", "text"],
    request: GenerationRequest,
    prompts: list[list[int]],
    limits: _Limits,
    logprobs: int,
    adapter: str | None,
    service: Service,
    headers: Mapping[str, str],
) -> Job:
    limits.check_ids(list(request.logit_bias), "logit_bias")
    limits.check_ids(request.stop_token_ids, "stop_token_ids")
    resumed = request.resume.output_token_ids if request.resume else None
    asked = request.constraint
    limits.check_ids(resumed or [], "resume.output_token_ids")
    unique = uuid.uuid4().hex
    tenant, weight = _identity(service, headers)
    seed = random.getrandbits(63) if request.seed is None else request.seed
    requests: list[AddRequest] = []
    for prompt in prompts:
        limits.check_ids(prompt, "prompt")
        max_tokens = limits.max_tokens(prompt)
        if request.min_tokens > max_tokens:
            message = f"min_tokens={request.min_tokens} is more than max_tokens={max_tokens}"
            raise invalid(message, "min_tokens")
        for choice in range(request.n):
            sampling = _sampling(request, max_tokens, (seed + choice) % 2**64, logprobs, service)
            index = len(requests)
            requests.append(
                AddRequest(f"{unique}-{index}", prompt, sampling, adapter, resumed or [], tenant, weight, request.user)
            )
    if asked is not None:
        service.metrics.constrained(asked.constraint.kind, len(requests))
    return Job(
        kind=kind,
        id=("chatcmpl-" if kind == "chat" else "cmpl-") + unique,
        created=int(time.time()),
        model=request.model,
        requests=requests,
        prompt_tokens=sum(len(prompt) for prompt in prompts),
        stop=request.stop_strings,
        include_stop=request.include_stop_str_in_output,
        show_special=not request.skip_special_tokens,
        logprobs=logprobs,
        stream=request.stream,
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
        return_token_ids=request.return_token_ids,
        resumed=resumed,
        constrained_by=asked.param if asked else None,
    )


def _sampling(request: GenerationRequest, max_tokens: int, seed: int, logprobs: int, service: Service) -> Sampling:
    ends = () if request.ignore_eos else service.tokenizer.eos_token_ids
    return Sampling(
        max_tokens=max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=max(request.top_k, 0),
        min_p=request.min_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        seed=seed,
        logit_bias=request.logit_bias,
        stop_token_ids=tuple(sorted({*ends, *request.stop_token_ids})),
        min_tokens=request.min_tokens,
        logprobs=logprobs,
        constraint=request.constraint.constraint if request.constraint else None,
    )


def _identity(service: Service, headers: Mapping[str, str]) -> tuple[str, float]:
    """The tenant and its weight, from the gateway alone: without its token anyone could write the headers."""
    if not service.settings.serving_token:
        return "", 1.0
    try:
        weight = float(headers.get("lorafleet-weight", "1"))
    except ValueError:
        weight = -1.0
    if not LEAST_WEIGHT <= weight <= 1 / LEAST_WEIGHT:
        message = f"Lorafleet-Weight must be a number from {LEAST_WEIGHT:g} to {1 / LEAST_WEIGHT:g}"
        raise ApiError(400, message, "invalid_value", "Lorafleet-Weight")
    tenant = headers.get("lorafleet-tenant", "")
    if len(tenant) > MAX_TENANT_NAME:
        message = f"Lorafleet-Tenant has {len(tenant)} characters; a tenant's name has at most {MAX_TENANT_NAME}"
        raise ApiError(400, message, "invalid_value", "Lorafleet-Tenant")
    return tenant, weight
