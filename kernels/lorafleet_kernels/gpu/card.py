"""What the launches need to know of a card."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lorafleet_kernels.gpu.forms.attention import Capability

OLDEST = (8, 0)
"""Ampere: asynchronous copies and bfloat16 in the tensor cores, which the kernels use throughout."""


LAUNCHES_DEPENDENTS = (9, 0)
"""Hopper: a kernel may start before the one ahead of it on its stream has ended."""


@dataclass(frozen=True, slots=True)
class Card:
    name: str
    capability: Capability
    processors: int

    @classmethod
    def of(cls, device: torch.device) -> Card:
        """The card behind a device; in Triton's interpreter, a small one. Raises ValueError for a card too old."""
        if device.type != "cuda":
            return cls("interpreted", (9, 0), 4)
        found = torch.cuda.get_device_properties(device)
        card = cls(found.name, (found.major, found.minor), found.multi_processor_count)
        if card.capability < OLDEST:
            raise ValueError(
                f"{card.name} has compute capability {found.major}.{found.minor}; the kernels need 8.0 or newer: "
                "LORAFLEET_KERNELS=reference computes with plain torch"
            )
        return card

    def must_launch_dependents(self) -> None:
        """Raises ValueError where this card does not know dependent launches."""
        if self.capability < LAUNCHES_DEPENDENTS:
            raise ValueError(
                f"LORAFLEET_DEPENDENT_LAUNCHES=1: {self.name} has compute capability {self.capability[0]}."
                f"{self.capability[1]}, and dependent launches need 9.0 or newer: unset it"
            )
