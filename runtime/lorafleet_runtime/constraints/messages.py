"""What the engine tells the process that knows constraints, and what it answers: msgspec structs in frames on pipes.

A mask is one bit a token, the lowest bit of the first byte for id 0: 1 where the token may come next. Before the token
that it is for come those of `run`, where nothing else fits: the process has taken them up already."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from lorafleet_runtime.constraints.constraint import Constraint, Vocabulary


class Open(msgspec.Struct, frozen=True, tag=True):
    """A request begins, with what it has generated elsewhere; answered by Opened.

    `trusted`: another such process has compiled the constraint within its bounds."""

    request_id: str
    constraint: Constraint
    output_token_ids: list[int]
    trusted: bool = False


class Advance(msgspec.Struct, frozen=True, tag=True):
    """Tokens that requests have got since they were last named, beyond the runs that were foreseen; each is answered by
    a Mask, in this order, all in one Made."""

    tokens: list[tuple[str, list[int]]]


class Close(msgspec.Struct, frozen=True, tag=True):
    """These requests have ended."""

    request_ids: list[str]


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The mask of the token after `run`, or why there is none. `seconds` of compiling; 0 if it was compiled already."""

    request_id: str
    run: list[int] = []
    mask: bytes = b""
    error: str = ""
    seconds: float = 0.0


class Mask(msgspec.Struct, frozen=True):
    """The mask of the token after `run`, or why there is none."""

    request_id: str
    run: list[int] = []
    mask: bytes = b""
    error: str = ""


class Made(msgspec.Struct, frozen=True, tag=True):
    """One message, as each wakes the engine while all its cores compute."""

    masks: list[Mask]


ToWorker = Vocabulary | Open | Advance | Close
FromWorker = Opened | Made
decode_to_worker: Callable[[bytes], ToWorker] = msgspec.msgpack.Decoder(ToWorker).decode
decode_from_worker: Callable[[bytes], FromWorker] = msgspec.msgpack.Decoder(FromWorker).decode
