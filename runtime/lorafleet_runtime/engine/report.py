"""What the engine says of its memory, of what it has done, and of a token, as the front end shows it."""

from __future__ import annotations

from dataclasses import dataclass

from lorafleet_runtime.core.eviction import PURPOSES
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.scheduler import Scheduler
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.engine.constraints import Constraints
from lorafleet_runtime.engine.sampling import Sampled
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.protocol import Counters, Delta, ModelInfo, PagesInfo, Sampling, TokenLogprobs


@dataclass(slots=True)
class Totals:
    """Since the start."""

    steps: int = 0
    prompt_tokens: int = 0
    generated: int = 0


def pages_info(room: Room, page_bytes: int) -> PagesInfo:
    """The pool by use."""
    return PagesInfo(
        total=room.pool.total,
        free=room.pool.free,
        kv=room.sequence_pages,
        adapters=room.residency.pages_used,
        prefixes=room.prefixes.idle,
        evictable=room.order.pages,
        bytes=page_bytes,
    )


def counters(totals: Totals, room: Room, scheduler: Scheduler, reads: int, constraints: Constraints) -> Counters:
    """`reads`: of adapters from disk."""
    return Counters(
        steps=totals.steps,
        prompt_tokens=totals.prompt_tokens,
        generation_tokens=totals.generated,
        preemptions=scheduler.preemptions,
        adapter_loads=room.residency.loads,
        adapter_reads=reads,
        adapter_evictions={purpose: room.residency.evicted[purpose] for purpose in PURPOSES},
        prefix_evictions={purpose: room.prefixes.evicted[purpose] for purpose in PURPOSES},
        prefix_tokens_asked=room.prefixes.asked,
        prefix_tokens_hit=room.prefixes.hits,
        early_aborts=scheduler.queue.aborted,
        constraints_compiled=constraints.compiled,
        constraint_seconds=constraints.compile_seconds,
    )


def model_info(model: Decoder, max_model_len: int, max_rank: int, parameters: int) -> ModelInfo:
    return ModelInfo(
        architecture=model.config.architecture,
        dtype=str(model.dtype).removeprefix("torch."),
        max_model_len=max_model_len,
        max_rank=max_rank,
        parameters=parameters,
        vocab_size=model.config.vocab_size,
    )


def delta(sequence: Sequence, sample: Sampled) -> Delta:
    """What a step gave a request; a token of -1 ends it with an error."""
    if sample.token_id < 0:
        who = f"adapter {sequence.adapter.id}" if sequence.adapter else "the base model"
        overflow = f"numeric_overflow: {who} gave logits that are not finite at token {sequence.output_len}"
        return Delta(sequence.request_id, [], finish_reason="error", error=sample.error or overflow)
    return Delta(
        sequence.request_id,
        [sample.token_id],
        finish_reason=sequence.finish_reason,
        stop_token_id=sample.token_id if sequence.finish_reason == "stop" else None,
        logprobs=logprobs(sequence.sampling, sample),
        cached_tokens=sequence.cached,
    )


def logprobs(sampling: Sampling, sample: Sampled) -> list[TokenLogprobs]:
    """Of one token, as far as they were asked for."""
    if sampling.logprobs < 0 or sample.logprob is None:
        return []
    return [TokenLogprobs(sample.token_id, sample.logprob, sample.top)]
