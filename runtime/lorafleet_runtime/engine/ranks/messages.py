"""What the first rank tells the others, and what they answer: msgspec structs in frames on their pipes.

A step's plan is whole in itself, so that a rank keeps no sequences: tokens of the step, where they stand, pages."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from lorafleet_runtime.engine.step_plan import RunStep


class Load(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The first message: an EngineConfig as JSON. Read your part of the base model."""

    config: str


class Begin(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The pool's size is known: join the group, make it, and wait for steps."""

    total_pages: int


class ReadAdapter(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Read your part of an adapter, beside the steps, and answer with AdapterRead."""

    ticket: int
    folder: str


class DropAdapter(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Nobody wants what this ticket read or reads."""

    ticket: int


class RegisterAdapter(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Every rank has read it: steps may use it by this handle."""

    ticket: int
    handle: int


class StoreAdapter(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Host memory has no room for it: put your part on disk."""

    handle: int


class FetchAdapter(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Bring it back into host memory, beside the steps, and answer with AdapterFetched."""

    handle: int


class ForgetAdapter(msgspec.Struct, frozen=True, tag=True, array_like=True):
    handle: int


class Loaded(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """This rank's part of the base model is in memory."""


class AdapterRead(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """`pages` of this rank's part, or `reason` and `error`."""

    ticket: int
    pages: int = 0
    reason: str = ""
    error: str = ""


class AdapterFetched(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """It is in host memory, or `error` says why it never will be."""

    handle: int
    error: str = ""


class Failed(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The last words of a rank that ends by itself."""

    message: str
    details: str


Order = ReadAdapter | DropAdapter | RegisterAdapter | StoreAdapter | FetchAdapter | ForgetAdapter
ToRank = Load | Begin | Order | RunStep
FromRank = Loaded | AdapterRead | AdapterFetched | Failed
decode_to_rank: Callable[[bytes], ToRank] = msgspec.msgpack.Decoder(ToRank).decode
decode_from_rank: Callable[[bytes], FromRank] = msgspec.msgpack.Decoder(FromRank).decode
