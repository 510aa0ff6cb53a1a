"""A request as it comes in: the sequence that it becomes, or the answer that refuses it."""

from __future__ import annotations

from lorafleet_runtime.core.residency import Residency
from lorafleet_runtime.core.scheduler import Scheduler
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.engine.sampling.penalties import reads_output
from lorafleet_runtime.protocol import AddRequest, Delta


def taken(message: AddRequest, residency: Residency, scheduler: Scheduler, now: float) -> Sequence | Delta:
    """`now`: seconds on the engine's clock."""
    adapter = None
    if message.adapter is not None:
        adapter = residency.get(message.adapter)
        if adapter is None:
            return refusal(message.request_id, f"adapter_not_found: adapter {message.adapter} is not loaded here")
    tokens = message.prompt_token_ids + message.output_token_ids
    reason = scheduler.reason_it_never_fits(len(tokens), adapter)
    if reason is not None:
        return refusal(message.request_id, f"context_length_exceeded: {reason}")
    seconds = scheduler.queue.refuses(message.tenant, now)
    if seconds is not None:
        error = "rate_limited: this tenant has sent as many requests in a minute as the policy RPM allows"
        return refusal(message.request_id, error, retry_after=seconds)
    return Sequence(
        request_id=message.request_id,
        tokens=tokens,
        prompt_len=len(message.prompt_token_ids),
        sampling=message.sampling,
        adapter=adapter,
        tenant=message.tenant,
        weight=message.weight,
        user=message.user,
        arrived=now,
        reads_output=reads_output(message.sampling),
    )


def refusal(request_id: str, error: str, retry_after: int = 0) -> Delta:
    """The only answer that a request gets; `error` is "CODE: message"."""
    return Delta(request_id, [], finish_reason="error", error=error, retry_after=retry_after)
