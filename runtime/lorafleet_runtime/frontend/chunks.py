"""OpenAI's response bodies, as bytes: stream events and whole answers, for chat and for text.

msgspec writes them: a model per chunk would cost more than all else the front end does for a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lorafleet_runtime.errors import ApiError
from lorafleet_runtime.frontend.choices import Choice, Update
from lorafleet_runtime.frontend.detokenize import Piece
from lorafleet_runtime.frontend.intake import Job
from lorafleet_runtime.frontend.token_bytes import TokenBytes
from lorafleet_runtime.protocol import TokenLogprobs

DONE = b"data: [DONE]\n\n"
_LEAST_LOGPROB = -9999.0  # JSON has no infinity; vLLM and OpenAI write this
_encode = msgspec.json.encode


def error_event(error: ApiError) -> bytes:
    """The last event of a stream that cannot go on."""
    return b"data: " + _encode(error.body()) + b"\n\n"


class Writer:
    """Bodies of one job. `choices` are read for usage when it is asked for."""

    def __init__(self, job: Job, choices: Sequence[Choice], table: TokenBytes, fingerprint: str) -> None:
        self._job = job
        self._choices = choices
        self._table = table
        self._head = {
            "id": job.id,
            "object": "chat.completion.chunk" if job.kind == "chat" else "text_completion",
            "created": job.created,
            "model": job.model,
            "system_fingerprint": fingerprint,
        }

    def opening(self, index: int) -> bytes:
        """What precedes a choice's text: the role in a chat, the prompt's ids when they are wanted."""
        if self._job.resumed is not None and not self._job.return_token_ids:
            return b""
        if self._job.kind == "text" and not self._job.return_token_ids:
            return b""
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": None}
        if self._job.kind == "text":
            choice["text"] = ""
        else:
            # A client of a resumed stream already knows who speaks.
            choice["delta"] = {"role": "assistant", "content": ""} if self._job.resumed is None else {}
        extra: dict[str, Any] = {}
        if self._job.return_token_ids:
            choice["token_ids"] = []
            extra["prompt_token_ids"] = self._job.requests[index].prompt_token_ids
        return self._event({"choices": [choice], **extra})

    def update(self, update: Update) -> bytes:
        """One event; b"" when there is nothing to tell yet."""
        piece = update.piece
        silent = not piece.text and not (piece.token_ids and (self._job.return_token_ids or piece.logprobs))
        if silent and update.finish_reason is None:
            return b""
        choice: dict[str, Any] = {"index": update.index}
        if self._job.kind == "chat":
            choice["delta"] = {"content": piece.text} if piece.text else {}
        else:
            choice["text"] = piece.text
        choice["logprobs"] = self.logprobs(piece)
        choice["finish_reason"] = update.finish_reason
        if self._job.return_token_ids:
            choice["token_ids"] = piece.token_ids
        return self._event({"choices": [choice]})

    def closing(self) -> bytes:
        """The end of a stream that went well."""
        if not self._job.include_usage:
            return DONE
        return b"data: " + _encode(self._head | {"choices": [], "usage": self.usage()}) + b"\n\n" + DONE

    def whole(self, pieces: Sequence[Piece]) -> bytes:
        """The answer without streaming: `pieces[i]` is all of choice i."""
        body: dict[str, Any] = dict(self._head)
        if self._job.kind == "chat":
            body["object"] = "chat.completion"
        body["choices"] = [self._whole_choice(choice, pieces[choice.index]) for choice in self._choices]
        if self._job.return_token_ids:
            body["prompt_token_ids"] = self._job.requests[0].prompt_token_ids
        body["usage"] = self.usage()
        return _encode(body)

    def usage(self) -> dict[str, Any]:
        """Tokens of the whole job; a resumed request's earlier tokens count."""
        completion = sum(choice.completion_tokens for choice in self._choices)
        return {
            "prompt_tokens": self._job.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self._job.prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": max(c.cached_tokens for c in self._choices)},
        }

    def logprobs(self, piece: Piece) -> dict[str, Any] | None:
        """In the route's own format; None unless asked for."""
        if self._job.logprobs < 0:
            return None
        if self._job.kind == "chat":
            return {"content": [self._chat_logprobs(token) for token in piece.logprobs], "refusal": None}
        tokens = piece.logprobs
        best = [{self._table.shown(t): _finite(p) for t, p in token.top} for token in tokens]
        return {
            "tokens": [self._table.shown(token.token_id) for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": best if self._job.logprobs else None,
            "text_offset": piece.offsets,
        }

    def _chat_logprobs(self, token: TokenLogprobs) -> dict[str, Any]:
        best = [self._chat_token(token_id, logprob) for token_id, logprob in token.top]
        return self._chat_token(token.token_id, token.logprob) | {"top_logprobs": best}

    def _chat_token(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = self._table.of(token_id, show_special=True)
        return {"token": self._table.shown(token_id), "logprob": _finite(logprob), "bytes": list(raw)}

    def _whole_choice(self, choice: Choice, piece: Piece) -> dict[str, Any]:
        body: dict[str, Any] = {"index": choice.index}
        if self._job.kind == "chat":
            body["message"] = {"role": "assistant", "content": piece.text, "refusal": None}
        else:
            body["text"] = piece.text
        body["logprobs"] = self.logprobs(piece)
        body["finish_reason"] = choice.finish_reason
        if self._job.return_token_ids:
            body["token_ids"] = piece.token_ids
        return body

    def _event(self, body: dict[str, Any]) -> bytes:
        # With include_usage every chunk has the field, null until the last.
        usage = {"usage": None} if self._job.include_usage else {}
        return b"data: " + _encode(self._head | body | usage) + b"\n\n"


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)
