"""Where forms are tried."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.tuning.clock import Timer, replayed

DEFAULT_L2 = 64 << 20


@dataclass(frozen=True, slots=True)
class Stand:
    """A device, what card it is, how it is timed; `cache`: bytes of L2."""

    device: torch.device
    card: Card
    cache: int
    timer: Timer

    @classmethod
    def here(cls) -> Stand:
        """The current CUDA device. Raises ValueError for a card that the kernels do not know."""
        device = torch.device("cuda", torch.cuda.current_device())
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", DEFAULT_L2) or DEFAULT_L2
        return cls(device, Card.of(device), cache, replayed)
