"""One constrained request, as the engine knows it."""

from __future__ import annotations

from dataclasses import dataclass

from lorafleet_runtime.constraints.constraint import Constraint
from lorafleet_runtime.constraints.messages import Mask, Opened


@dataclass(slots=True)
class Request:
    """`output`: the tokens that the process has taken up, of which the last may still have to come: nothing else fits
    there. `mask` is of the one after them, as soon as it is made; `error` ends it there."""

    constraint: Constraint
    output: list[int]
    mask: bytes = b""
    error: str = ""

    @property
    def answered(self) -> bool:
        return bool(self.mask or self.error)

    def take(self, answer: Mask | Opened) -> None:
        """What the process says of it."""
        self.output += answer.run
        self.mask = answer.mask
        if answer.error:
            self.error = f"constraint_failed: after {len(self.output)} tokens: {answer.error}"

    def mask_at(self, position: int) -> bytes:
        """Of the token at that place of the output; empty where there is none."""
        if position >= len(self.output):
            return b"" if self.error else self.mask
        byte, bit = divmod(self.output[position], 8)
        return bytes(byte) + bytes([1 << bit])
