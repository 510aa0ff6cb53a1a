"""Which forms attention gets on a card where some were measured for such heads, or else the defaults.

Pure: no files, no clock, no device. A form is chosen for an engine, not for a step: captured graphs share one split of
the decode rows, and the memory where its pieces meet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from statistics import geometric_mean

import torch

from lorafleet_kernels.batch import HeadSizes
from lorafleet_kernels.gpu.forms.attention import Capability, DecodeTiles, PrefillTiles, decode_tiles, prefill_tiles
from lorafleet_kernels.gpu.forms.attention_candidates import decode_candidates, prefill_candidates
from lorafleet_kernels.gpu.forms.weight_types import FP8_NAME, name_of
from lorafleet_kernels.reference_fp8 import FP8

AttentionForm = DecodeTiles | PrefillTiles
TYPES = ("bfloat16", "float16", "float32")


class Phase(StrEnum):
    """`DECODE`: a new token a row, over its pages; `PROMPTS`: chunks of many."""

    DECODE = "decode"
    PROMPTS = "prompts"


@dataclass(frozen=True, slots=True)
class Heads:
    """What of a model and its pool decides what attention's forms cost: query heads, key-value heads, features of one,
    the model's element type ("bfloat16"), and that of keys and values (the same, or "fp8")."""

    heads: int
    kv_heads: int
    size: int
    dtype: str
    kv: str

    def __post_init__(self) -> None:
        """Raises ValueError for what no model has."""
        if self.dtype not in TYPES or self.kv not in (self.dtype, FP8_NAME):
            raise ValueError(f"keys and values in {self.kv!r} beside {self.dtype!r}: the latter is one of {TYPES}")
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads are no equal groups of {self.kv_heads}")

    @classmethod
    def of(cls, sizes: HeadSizes, dtype: torch.dtype, kv: torch.dtype) -> Heads:
        return cls(sizes.heads, sizes.kv_heads, sizes.size, name_of(dtype), name_of(kv))

    @property
    def group(self) -> int:
        """Query heads of a key-value head."""
        return self.heads // self.kv_heads

    @property
    def types(self) -> tuple[torch.dtype, torch.dtype]:
        """Of the model, and of the pool."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype, FP8 if self.kv == FP8_NAME else dtype

    def candidates(self, phase: Phase, capability: Capability) -> tuple[AttentionForm, ...]:
        """What ships for one phase on such a card, the default first."""
        dtype, kv = self.types
        if phase is Phase.DECODE:
            return decode_candidates(self.size, self.group, kv, capability)
        return prefill_candidates(self.size, self.group, dtype, kv, capability)

    def defaults(self, capability: Capability) -> tuple[DecodeTiles, PrefillTiles]:
        """What serves decode rows and prompts where nothing was measured."""
        dtype, kv = self.types
        decode = decode_tiles(self.size, self.group, kv, capability)
        return decode, prefill_tiles(self.size, self.group, dtype, capability)


@dataclass(frozen=True, slots=True)
class Sequences:
    """So many of them with `new` tokens each in a step, after `cached` ones: 1 new token is a decode row. The lengths
    are a mean: a batch's contexts differ."""

    count: int
    new: int
    cached: int

    def __str__(self) -> str:
        return f"{self.count} x {self.new} after {self.cached}"


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of a launch over such sequences, in the form that was found, and in the default one."""

    sequences: Sequences
    seconds: float
    default_seconds: float


@dataclass(frozen=True, slots=True)
class AttentionTuning:
    """What was found for one kind of heads, in the phase that the form is of. Raises ValueError where nothing was
    measured."""

    heads: Heads
    form: AttentionForm
    measured: tuple[Measured, ...]

    def __post_init__(self) -> None:
        if not self.measured:
            raise ValueError(f"{self.form} was measured over nothing")

    @property
    def phase(self) -> Phase:
        return Phase.DECODE if isinstance(self.form, DecodeTiles) else Phase.PROMPTS

    @property
    def key(self) -> object:
        """A later tuning of the same key takes this one's place."""
        return self.heads, self.phase

    @property
    def seconds(self) -> float:
        """The geometric mean."""
        return geometric_mean(one.seconds for one in self.measured)

    @property
    def default_seconds(self) -> float:
        return geometric_mean(one.default_seconds for one in self.measured)


def known_form(heads: Heads, phase: Phase, tunings: Iterable[object]) -> AttentionForm | None:
    """That of the first of `tunings`, of whatever kind they are, for these heads; None where there is none."""
    key = (heads, phase)
    return next((t.form for t in tunings if isinstance(t, AttentionTuning) and t.key == key), None)


def attention_forms(
    heads: Heads, tunings: Iterable[object], capability: Capability
) -> tuple[DecodeTiles, PrefillTiles]:
    """Those that were measured, or else the defaults, of decode rows and of prompts."""
    known = list(tunings)
    decode, prompts = heads.defaults(capability)
    found = [known_form(heads, phase, known) for phase in Phase]
    return (
        found[0] if isinstance(found[0], DecodeTiles) else decode,
        found[1] if isinstance(found[1], PrefillTiles) else prompts,
    )


def why_not(tuning: AttentionTuning, capability: Capability) -> str:
    """Why attention may not have the form that was found; empty where it may. Only what ships may."""
    heads = tuning.heads
    if tuning.form in heads.candidates(tuning.phase, capability):
        return ""
    return f"no attention of {shown(tuning.form)} ships for {tuning.phase} over heads of {heads.size} in {heads.kv}"


def shown(form: AttentionForm) -> str:
    """A form in a line for people."""
    return f"{form}, {form.resident} programs a processor" if isinstance(form, DecodeTiles) else str(form)
