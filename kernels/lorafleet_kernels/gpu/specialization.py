"""What a kernel says of the forms in which it ships: enough to compile and check every one of them without a GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs kernels on the CPU, program by program. It then computes on the bits of bfloat16 operands as if
they were integers, without a word: every kernel takes `UPCAST: tl.constexpr` and casts them to float32 where it is
set."""


EARLY = frozenset({"work", "row_adapters", "adapters", "pages", "layouts", "slots", "bounds", "items"})
"""Arguments that a kernel may read before those ahead of it have ended: what a step is told, which one copy brought
before its first kernel and no kernel writes."""


@dataclass(frozen=True, slots=True)
class Specialization:
    """One compiled form of a kernel.

    `arguments`: what is given at run time, by name, as Triton names types ("*bf16", "i32"); `constants`: the kernel's
    constexpr arguments; `divisible`: the arguments that are promised to be multiples of 16 (pointers always are).
    `expects`: what the machine code must contain ("mma", "cp.async"); `cards`: those for which it ships ("sm_90"), all
    where there are none; `dependent`: whether it starts before the kernels ahead of it have ended
    (`kernels.dependence`)."""

    name: str
    kernel: Any
    arguments: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int
    divisible: frozenset[str] = field(default_factory=frozenset)
    expects: frozenset[str] = field(default_factory=frozenset)
    cards: frozenset[str] = field(default_factory=frozenset)
    dependent: bool = False


def also_dependent(forms: Sequence[Specialization]) -> list[Specialization]:
    """The forms, and behind them those for dependent launches, on the card that has them."""
    alone = [replace(form, constants={**form.constants, "DEPENDENT": False}) for form in forms]
    return alone + [
        replace(
            form,
            name=f"{form.name} dependent",
            constants={**form.constants, "DEPENDENT": True},
            cards=frozenset({"sm_90"}),
            dependent=True,
        )
        for form in forms
        if not form.cards or "sm_90" in form.cards
    ]
