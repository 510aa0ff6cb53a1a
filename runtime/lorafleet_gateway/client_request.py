"""A client's request body: the few fields that the gateway reads, the rest kept byte for byte.

Knows nothing of sampling: whatever else is wrong with a request, the runtime says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

from lorafleet_gateway.core.estimate import prompts_in
from lorafleet_gateway.errors import ApiError, invalid

_T = TypeVar("_T")
_TRACE_HEADERS = ("traceparent", "tracestate")
_ABSENT = Raw(b"null")
_fields = msgspec.json.Decoder(dict[str, Raw])


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """One parsed body.

    `single` says that the answer is one choice of one prompt, which is what a replica can resume.
    """

    path: str
    model: str
    stream: bool
    single: bool
    wants_token_ids: bool
    wants_usage: bool
    fields: dict[str, Raw]

    def upstream_body(self, wire_name: str, output_token_ids: Sequence[int] = ()) -> bytes:
        """The body for a replica: the client's fields, its model's wire name, and what a stream needs to be
        resumed, or where it cannot be, what counts its tokens."""
        body: dict[str, Any] = {**self.fields, "model": wire_name}
        if self.stream and self.single:
            body["return_token_ids"] = True
            if output_token_ids:
                body["resume"] = {"output_token_ids": output_token_ids}
        elif self.stream and not self.wants_usage:
            options = _options(self.fields)
            if options is not None:  # of another type, it is for the replica to refuse
                body["stream_options"] = {**options, "include_usage": True}
        return msgspec.json.encode(body)


async def read_body(chunks: AsyncIterator[bytes], content_length: str | None, most: int) -> bytes:
    """The whole body. Raises ApiError 413 above `most` bytes, before reading when the length is announced."""
    if content_length is not None and content_length.isdigit() and int(content_length) > most:
        raise _too_large(most)
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > most:
            raise _too_large(most)
        parts.append(chunk)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def parse(path: str, body: bytes) -> ClientRequest:
    """The request in `body`. Raises ApiError 400 with the position of a syntax error, or the field that is
    wrong."""
    try:
        fields = _fields.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(f"The body must be a JSON object: {error}", code="invalid_json") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"The body is not valid JSON: {error}", code="invalid_json") from None
    if "resume" in fields:
        raise invalid(
            "`resume` is for the gateway's own use with its replicas; leave it out.",
            "resume",
            "unknown_field",
        )
    model = _field(fields, "model", str)
    if not model:
        raise invalid("`model` is missing; name a model from `GET /v1/models`.", "model", "missing_field")
    choices = _field(fields, "n", int)
    best_of = _field(fields, "best_of", int)
    if choices is not None and choices < 1:
        raise invalid(f"`n` must be at least 1, got {choices}.", "n")
    return ClientRequest(
        path=path,
        model=model,
        stream=_field(fields, "stream", bool) or False,
        single=choices in (None, 1) and best_of in (None, 1) and prompts_in(fields.get("prompt", _ABSENT))[0] == 1,
        wants_token_ids=_field(fields, "return_token_ids", bool) or False,
        wants_usage=(_options(fields) or {}).get("include_usage") is True,
        fields=fields,
    )


def trace_headers(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """The W3C trace context: the only client headers that a replica sees."""
    found = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    return {name: found[name] for name in _TRACE_HEADERS if name in found}


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"The body is larger than {most} bytes; send less text.", "request_too_large")


def _field(fields: dict[str, Raw], name: str, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(fields.get(name, _ABSENT), type=kind | None)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"`{name}` is invalid: {error}.", name) from None


def _options(fields: dict[str, Raw]) -> dict[str, Any] | None:
    """`stream_options`, empty when it is absent, None when it is no object."""
    try:
        return msgspec.json.decode(fields.get("stream_options", _ABSENT), type=dict[str, Any] | None) or {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
