"""One constrained request, as the engine knows it."""

from __future__ import annotations

from dataclasses import dataclass

from lorafleet_runtime.constraints.constraint import Constraint
from lorafleet_runtime.constraints.messages import Mask, Opened


@dataclass(slots=True)
class Request:
    """`output`: the tokens that the process was told. `mask` is of the one after them, as soon as it is made."""

    constraint: Constraint
    output: list[int]
    mask: bytes = b""
    error: str = ""

    @property
    def answered(self) -> bool:
        return bool(self.mask or self.error)

    def take(self, answer: Mask | Opened) -> None:
        """What the process says of it."""
        self.mask = answer.mask
        if answer.error:
            self.error = f"constraint_failed: after {len(self.output)} tokens: {answer.error}"
