"""One choice of one request on its way from deltas to text: what to say next, and when it is over."""

from __future__ import annotations

from dataclasses import dataclass

from lorafleet_runtime.errors import ApiError
from lorafleet_runtime.frontend.detokenize import Detokenizer, Piece
from lorafleet_runtime.frontend.intake import Job
from lorafleet_runtime.frontend.metrics import RequestClock
from lorafleet_runtime.frontend.token_bytes import TokenBytes
from lorafleet_runtime.protocol import Delta

_CONSTRAINTS = ("invalid_constraint", "constraints_unavailable", "constraint_failed", "constraint_too_slow")
_STATUS_OF_ERRORS = {
    "adapter_not_found": 404,
    "context_length_exceeded": 400,
    "no_room": 503,
    "adapter_lost": 503,
    "draining": 503,
    "rate_limited": 429,
    "slo_unattainable": 503,
    "constraint_lost": 503,
}


@dataclass(frozen=True, slots=True)
class Update:
    """Something to tell the client about choice `index`."""

    index: int
    piece: Piece
    finish_reason: str | None


class Choice:
    """Consumes its deltas in order. `abort` of the engine's request is the caller's, after a stop string."""

    def __init__(self, job: Job, index: int, table: TokenBytes, clock: RequestClock) -> None:
        self.index = index
        self.request = job.requests[index]
        self.finish_reason: str | None = None
        self.cached_tokens = 0
        self._clock = clock
        self._constrained_by = job.constrained_by
        self._detokenizer = Detokenizer(table, job.stop, include_stop=job.include_stop, show_special=job.show_special)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated for this choice, elsewhere or here, up to its end."""
        return self._detokenizer.count

    def resume(self) -> Update | None:
        """Take up what was delivered elsewhere; an update only when that was already everything."""
        ids, sampling = self.request.output_token_ids, self.request.sampling
        if self._detokenizer.resume(ids) is not None:
            return self._end(Piece(""), "stop")
        if ids and ids[-1] in sampling.stop_token_ids and len(ids) > sampling.min_tokens:
            return self._end(Piece(""), "stop")
        if len(ids) >= sampling.max_tokens:
            return self._end(Piece(""), "length")
        return None

    def take(self, delta: Delta) -> Update:
        """What a delta means for the client. Raises ApiError when the engine gave the request up."""
        if delta.finish_reason in ("error", "abort"):
            raise _engine_error(delta, self._constrained_by)
        self.cached_tokens = max(self.cached_tokens, delta.cached_tokens)
        ended = delta.stop_token_id is not None
        body, before = len(delta.token_ids) - ended, self.completion_tokens
        piece = self._detokenizer.feed(delta.token_ids[:body], delta.logprobs[:body])
        # What a step gave after a stop string is nobody's.
        if made := self.completion_tokens - before + (ended and piece.stopped is None):
            self._clock.tokens(made)
        if piece.stopped is not None:
            return self._end(piece, "stop")
        if delta.finish_reason is None:
            return Update(self.index, piece, None)
        last_logprobs = delta.logprobs[-1] if ended and delta.logprobs else None
        rest = self._detokenizer.finish(delta.stop_token_id, last_logprobs)
        return self._end(_joined(piece, rest), delta.finish_reason)

    def _end(self, piece: Piece, reason: str) -> Update:
        self.finish_reason = reason
        self._clock.finished(reason)
        return Update(self.index, piece, reason)


def _joined(first: Piece, second: Piece) -> Piece:
    return Piece(
        first.text + second.text,
        first.token_ids + second.token_ids,
        first.logprobs + second.logprobs,
        first.offsets + second.offsets,
    )


def _engine_error(delta: Delta, constrained_by: str | None) -> ApiError:
    if delta.finish_reason == "abort":
        return ApiError(503, "the engine gave this request up; send it again", "aborted", retry_after=1)
    code, _, message = delta.error.partition(": ")
    if code in _CONSTRAINTS:
        return ApiError(400, f"{constrained_by}: {message}", code, constrained_by)
    status = _STATUS_OF_ERRORS.get(code, 500)
    retry_after = delta.retry_after or (1 if status == 503 else None)
    code = "model_not_found" if code == "adapter_not_found" else code
    return ApiError(status, message or delta.error, code, retry_after=retry_after)
