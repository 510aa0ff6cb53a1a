"""The first rank's runner: every step's plan goes to the others before its own part of the step."""

from __future__ import annotations

import torch
from torch import Tensor

from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.engine.ranks.group import RankGroup
from lorafleet_runtime.engine.ranks.loader import RankedLoader
from lorafleet_runtime.engine.ranks.messages import Begin, ForgetAdapter, RegisterAdapter, StoreAdapter
from lorafleet_runtime.engine.ranks.ranks import Ranks
from lorafleet_runtime.engine.runner import Runner
from lorafleet_runtime.engine.step_plan import Plan
from lorafleet_runtime.model.collectives import Partition
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.lora import PackedAdapter


class RankedRunner(Runner):
    """A `Runner` whose calls the other ranks repeat on their parts, in the same order. They sample nothing."""

    def __init__(
        self, model: Decoder, total_pages: int, partition: Partition, ranks: Ranks, loader: RankedLoader,
        kv: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        """Meets the other ranks. Raises RankDied."""
        ranks.send(Begin(total_pages))
        try:
            model.collectives = RankGroup(ranks.rendezvous, 0, ranks.size, model.embedding.device)
        except RuntimeError as error:
            raise ranks.blame(error) from error
        ranks.joined()
        super().__init__(model, total_pages, partition, kv)
        self._ranks = ranks
        self._loader = loader

    def register(self, adapter: Adapter, packed: PackedAdapter) -> int:
        self._ranks.send(RegisterAdapter(self._loader.claim(adapter.id, adapter.revision), adapter.handle))
        return super().register(adapter, packed)

    def take_back(self, adapter: Adapter) -> Tensor:
        self._ranks.send(StoreAdapter(adapter.handle))
        return super().take_back(adapter)

    def forget(self, adapter: Adapter) -> None:
        self._ranks.send(ForgetAdapter(adapter.handle))
        super().forget(adapter)

    def logits(self, plan: Plan) -> Tensor:
        """As `Runner.logits`. Raises RankDied when another rank has ended, before the step or in it."""
        self._ranks.send(plan.step)
        try:
            return super().logits(plan)
        except RuntimeError as error:
            raise self._ranks.blame(error) from error

    def close(self) -> None:
        self._ranks.close()
