"""Why weights cannot be used. Who raises what, and who catches it:

LorafleetError
├── CheckpointError          checkpoint and its two formats → engine: phase Failed with the message
│   ├── UnsupportedModel     a sound checkpoint of a kind that the decoder cannot run
│   └── InvalidCheckpoint    files are missing, damaged or contradict each other
└── AdapterError             adapter → engine: adapter state Failed with `reason` and the message
    ├── InvalidAdapter       damaged, made for another model, or of a kind that cannot be served
    └── RankTooHigh          sound, but above this replica's maximum rank
"""

from __future__ import annotations

from typing import ClassVar

from lorafleet_runtime.errors import LorafleetError


class CheckpointError(LorafleetError):
    """A base model cannot be loaded."""


class UnsupportedModel(CheckpointError):
    """The decoder does not run this kind of model; the message names the kind and what is supported."""


class InvalidCheckpoint(CheckpointError):
    """Its files are missing, damaged or contradict each other; the message names file and tensor."""


class AdapterError(LorafleetError):
    """An adapter cannot be loaded; `reason` is the condition reason that users see."""

    reason: ClassVar[str] = "InvalidAdapter"


class InvalidAdapter(AdapterError):
    """The adapter's files are damaged, fit another model, or use a method that cannot be served."""


class RankTooHigh(AdapterError):
    """The adapter is sound, and its rank is above the maximum of this replica."""

    reason: ClassVar[str] = "RankTooHigh"
