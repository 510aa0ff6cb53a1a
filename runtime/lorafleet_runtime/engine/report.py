"""What the engine says of its memory, of what it has done, and of a token, as the front end shows it."""

from __future__ import annotations

from dataclasses import dataclass

from lorafleet_runtime.core.eviction import PURPOSES
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.scheduler import Scheduler
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.engine.constrained.requests import Constraints
from lorafleet_runtime.engine.sampling.sampler import Sampled
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
        foreseen_tokens=scheduler.speculation.foreseen,
        drafts=scheduler.speculation.rows,
        draft_tokens=scheduler.speculation.drafted,
        accepted_tokens=scheduler.speculation.accepted,
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


def deltas_of(sequence: Sequence, samples: list[Sampled]) -> list[Delta]:
    """What a step gave a request: its tokens, and if the last is -1, an error instead of that one, which ends it."""
    *before, last = samples
    if last.token_id >= 0:
        return [_delta(sequence, samples, sequence.finish_reason)]
    who = f"adapter {sequence.adapter.id}" if sequence.adapter else "the base model"
    overflow = f"numeric_overflow: {who} gave logits that are not finite at token {sequence.output_len}"
    error = Delta(sequence.request_id, [], finish_reason="error", error=last.error or overflow)
    return [_delta(sequence, before, None), error] if before else [error]


def _delta(sequence: Sequence, samples: list[Sampled], reason: str | None) -> Delta:
    return Delta(
        sequence.request_id,
        [sample.token_id for sample in samples],
        finish_reason=reason,
        stop_token_id=samples[-1].token_id if reason == "stop" else None,
        logprobs=[found for sample in samples for found in logprobs(sequence.sampling, sample)],
        cached_tokens=sequence.cached,
    )


def logprobs(sampling: Sampling, sample: Sampled) -> list[TokenLogprobs]:
    """Of one token, as far as they were asked for."""
    if sampling.logprobs < 0 or sample.logprob is None:
        return []
    return [TokenLogprobs(sample.token_id, sample.logprob, sample.top)]
