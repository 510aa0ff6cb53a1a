"""What adapters' weights may be in the pool: of the activations' type, or e4m3 (`fp8_rows`), which kernels convert in
registers: by an instruction on cards that have one, and on the others, where Triton knows no such type, from bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lorafleet_kernels.gpu.forms.attention import Capability

CONVERTS = (8, 9)
"""The least compute capability with an instruction from e4m3 to float16."""
FP8 = (torch.uint8, torch.float8_e4m3fn)
FP8_NAME = "fp8"


@dataclass(frozen=True, slots=True)
class Stored:
    """A type of weights: how forms of kernels call it, what Triton calls a pointer to it, and for which of the gate's
    cards they ship, all where there are none."""

    label: str
    pointer: str
    cards: frozenset[str] = field(default_factory=frozenset)


def stored_beside(dtype: str) -> tuple[Stored, ...]:
    """All types that weights have where activations have `dtype`, as Triton names it."""
    return (
        Stored("", f"*{dtype}"),
        Stored(" fp8 bits", "*u8", frozenset({"sm_80"})),
        Stored(" fp8", "*fp8e4nv", frozenset({"sm_90"})),
    )


def as_fp8(pool: Tensor, capability: Capability) -> Tensor:
    """The same memory `[layers, P, bytes of a page]`, of the type that kernels on such a card read e4m3 as."""
    return pool.view(torch.float8_e4m3fn if capability >= CONVERTS else torch.uint8)


def name_of(dtype: torch.dtype) -> str:
    """Of a type in the pool: "bfloat16", or "fp8" whatever it is read as."""
    return FP8_NAME if dtype in FP8 else str(dtype).removeprefix("torch.")
