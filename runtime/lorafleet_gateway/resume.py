"""What one streaming client has been sent, and how another replica's stream is joined to it without a seam.

Knows no sockets. A chunk is taken apart only as far as needed: texts and logprobs stay the bytes that the
replica wrote. That costs some ten microseconds a chunk, of the 150 that its way through the gateway takes.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from lorafleet_gateway.errors import ApiError, AttemptFailed, Lost, Moved

_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_choices = msgspec.json.Decoder(list[dict[str, Raw]]).decode
_decode_raws = msgspec.json.Decoder(list[Raw]).decode
_decode_ids = msgspec.json.Decoder(list[int]).decode
_encode = msgspec.json.Encoder().encode
_DONE = b"data: [DONE]\n\n"
_NULL = Raw(b"null")
_GIVEN_BACK = frozenset({"moved", "draining", "not_ready", "adapter_loading"})


class TokenUsage(msgspec.Struct, frozen=True):
    """A replica's own count."""

    prompt_tokens: Annotated[int, Meta(ge=0)]
    completion_tokens: Annotated[int, Meta(ge=0)]


def usage_in(fields: dict[str, Raw]) -> TokenUsage | None:
    """What an answer or a chunk says of its tokens, None if nothing that makes sense."""
    try:
        return msgspec.json.decode(fields.get("usage", _NULL), type=TokenUsage | None)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class StreamTracker:
    """Turns replicas' events into the client's events, over as many attempts as it takes.

    `single` streams (one choice of one prompt) can be resumed: their token ids are kept in
    `output_token_ids`, and taken out of the chunks unless `keep_token_ids`. After `feed`, `failure` says why
    this attempt has ended, if it has."""

    def __init__(
        self, served_name: str, *, single: bool, keep_token_ids: bool, wants_usage: bool, event_bytes: int
    ) -> None:
        self.output_token_ids: list[int] = []
        self.started = False  # something has been forwarded
        self.done = False  # [DONE] has been forwarded
        self.advanced = False  # this attempt has brought something new
        self.failure: ApiError | AttemptFailed | None = None
        self._model = Raw(_encode(served_name))
        self._single = single
        self._keep_token_ids = keep_token_ids
        self._wants_usage = wants_usage
        self._event_bytes = event_bytes
        self._buffer = b""
        self._identity: dict[str, Raw] = {}
        self._resuming = False
        self._finished = False
        self._usage_sent = False
        self._prompt_tokens: int | None = None
        self._pieces = 0  # chunks' choices of a stream whose token ids are not kept: each is at least one token
        self._usage: TokenUsage | None = None

    @property
    def used(self) -> tuple[int | None, int]:
        """Tokens of the prompt, None before they are known, and of the answer so far, over all attempts."""
        if self._usage is not None:
            return self._usage.prompt_tokens, self._usage.completion_tokens
        return self._prompt_tokens, len(self.output_token_ids) if self._single else self._pieces

    def begin(self) -> None:
        """A new attempt begins; what an earlier one left half-sent is forgotten."""
        self._buffer = b""
        self._resuming = self.started
        self.advanced = False
        self.failure = None

    def feed(self, data: bytes) -> bytes:
        """The client's events for the replica's bytes: complete ones only, so that a cut inside one leaves no
        trace."""
        if self._buffer:
            data = self._buffer + data
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        end = data.rfind(b"\n\n")
        self._buffer = data[end + 2 :] if end >= 0 else data
        if len(self._buffer) > self._event_bytes:
            self.failure = Lost("the replica sent an event without an end", accepted=True)
            return b""
        out = []
        for event in data[:end].split(b"\n\n") if end >= 0 else ():
            out.append(self._event(event.strip(b"\n")))
            if self.failure is not None or self.done:
                break
        return b"".join(out)

    def end(self) -> bytes:
        """The replica's stream ended. The client's last events when nothing is missing; else `failure` is
        set."""
        if not (self._single and self._finished):
            self.failure = Lost("the replica ended its stream early", accepted=True)
            return b""
        self.done = True
        if not self._wants_usage or self._usage_sent or self._prompt_tokens is None:
            return _DONE
        counts = {"prompt_tokens": self._prompt_tokens, "completion_tokens": len(self.output_token_ids)}
        usage = {**counts, "total_tokens": sum(counts.values())}
        return (
            b"data: "
            + _encode({**self._identity, "model": self._model, "choices": [], "usage": usage})
            + b"\n\n"
            + _DONE
        )

    def _event(self, event: bytes) -> bytes:
        if not event.startswith(b"data:"):
            # A comment keeps the client's connection alive, but must not commit us to a status before the
            # first chunk.
            return event + b"\n\n" if self.started and event else b""
        payload = event[5:].strip()
        if payload == b"[DONE]":
            self.done = True
            return _DONE
        try:
            chunk = self._chunk(_decode_object(payload))
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.failure = Lost("the replica sent an event that is not a chunk", accepted=True)
            return b""
        if chunk is None:
            return b""
        self.started = True
        return b"data: " + _encode(chunk) + b"\n\n"

    def _chunk(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        if "error" in chunk:
            self.failure = _failure(chunk["error"])
            return None
        if not self._identity:
            self._identity = {key: Raw(bytes(chunk[key])) for key in ("id", "object", "created") if key in chunk}
        chunk.update(self._identity)
        chunk["model"] = self._model
        if not self._single:
            self.advanced = True
            return self._counted(chunk)
        choices = _decode_choices(chunk.get("choices", b"[]"))
        useful = not self._resuming or not choices
        for choice in choices:
            useful |= self._choice(choice)
        self._usage_sent |= not choices and "usage" in chunk
        self._take_prompt(chunk)
        chunk["choices"] = choices
        return chunk if useful else None

    def _counted(self, chunk: dict[str, Any]) -> dict[str, Any] | None:
        """A chunk of a stream that was made to tell its usage, without what the client did not ask for."""
        choices = _decode_raws(chunk.get("choices", b"[]"))
        self._pieces += len(choices)
        self._usage = usage_in(chunk) or self._usage
        if self._wants_usage:
            return chunk
        return chunk if chunk.pop("usage", None) is None or choices else None

    def _choice(self, choice: dict[str, Any]) -> bool:
        """Note a choice's tokens; whether it tells the client anything new."""
        self._take_prompt(choice)
        ids = _decode_ids(choice.get("token_ids", b"[]")) if choice.get("token_ids") != _NULL else []
        if not self._keep_token_ids:
            choice.pop("token_ids", None)
        if ids:
            self.output_token_ids += ids
            self.advanced = True
        finish = choice.get("finish_reason", _NULL)
        if bytes(finish) != b"null":
            self._finished = self.advanced = True
        elif self._resuming and not ids:
            return _says_something(choice)
        if self._resuming and "delta" in choice:
            choice["delta"] = _without_role(choice["delta"])
        return True

    def _take_prompt(self, place: dict[str, Any]) -> None:
        ids = place.get("prompt_token_ids")
        if ids is None:
            return
        if self._prompt_tokens is None and bytes(ids) != b"null":
            self._prompt_tokens = len(_decode_ids(ids))
        if not self._keep_token_ids or self._resuming:
            del place["prompt_token_ids"]


def _without_role(delta: Raw) -> dict[str, Raw]:
    fields = _decode_object(delta)
    fields.pop("role", None)
    return fields


def _says_something(choice: dict[str, Any]) -> bool:
    if "delta" not in choice:
        return bytes(choice.get("text", b'""')) != b'""'
    choice["delta"] = fields = _without_role(choice["delta"])
    return any(bytes(value) not in (b'""', b"null") for value in fields.values())


def _failure(raw: Raw) -> ApiError | AttemptFailed:
    error = msgspec.json.decode(raw)
    fields: dict[str, Any] = error if isinstance(error, dict) else {"message": str(error), "type": "server_error"}
    message, code = str(fields.get("message") or "the replica reported an error"), fields.get("code")
    if code in _GIVEN_BACK:
        return Moved(message, str(fields.get("to") or ""))
    if fields.get("type") == "server_error":
        return Lost(message, accepted=True)
    return ApiError(400, message, str(code or "invalid_value"), fields.get("param"))
