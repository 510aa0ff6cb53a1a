"""The disk tier of a replica of several ranks: each has its own, and an adapter is back when all ranks have it back."""

from __future__ import annotations

from torch import Tensor

from lorafleet_runtime.engine.adapters.disk_tier import DiskTier
from lorafleet_runtime.engine.ranks.ranks import Ranks
from lorafleet_runtime.model.errors import InvalidAdapter


class RankedDisk(DiskTier):
    """As `DiskTier`. Other ranks are told to store by `RankedRunner.take_back`, and here to fetch."""

    def __init__(self, folder: str, ranks: Ranks) -> None:
        super().__init__(folder)
        self._ranks = ranks

    def read(self, handle: int) -> Tensor | None:
        """Waits for all ranks, which read at the same time. Raises InvalidAdapter when one cannot have it back."""
        wait = self._ranks.fetch(handle)
        blob = super().read(handle)
        if error := wait():
            raise InvalidAdapter(error)
        return blob
