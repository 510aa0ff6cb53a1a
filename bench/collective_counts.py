"""Collectives of one step of a decoder on several ranks: counted, and as the formulas have them [S-LoRA 6]."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from lorafleet_runtime.model.collectives import Collectives
from lorafleet_runtime.model.config import LORA_TARGETS, DecoderConfig
from lorafleet_runtime.model.parallel import ROW_TARGETS

COLUMN_TARGETS = tuple(t for t in LORA_TARGETS if t not in ROW_TARGETS)
ITEM = 4
"""Bytes of float32."""


class Counted:
    """Rank 0's collectives, with calls and bytes by kind."""

    def __init__(self, inner: Collectives) -> None:
        self.inner, self.rank, self.size = inner, inner.rank, inner.size
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def _count(self, kind: str, part: Tensor) -> None:
        self.calls[kind] += 1
        self.bytes[kind] += part.nbytes

    def all_reduce(self, part: Tensor) -> Tensor:
        self._count("all-reduce", part)
        return self.inner.all_reduce(part)

    def all_gather(self, part: Tensor) -> Tensor:
        self._count("all-gather", part)
        return self.inner.all_gather(part)

    def gather_columns(self, part: Tensor, columns: int) -> Tensor:
        self._count("gather", part)
        return self.inner.gather_columns(part, columns)


def expected(
    config: DecoderConfig, ranks: int, partition: str, lora_ranks: Sequence[int]
) -> tuple[Counter[str], Counter[str]]:
    """Calls, and the bytes that rank 0 puts in, of a step that decodes one token of each sequence; `lora_ranks` are
    those of the sequences' adapters, on all linear layers, or 0 for the base model alone."""
    layers, rows = config.num_layers, len(lora_ranks)
    calls = Counter({"all-reduce": 2 * layers, "gather": 1})
    sizes = Counter({
        "all-reduce": 2 * layers * rows * config.hidden_size * ITEM,
        "gather": rows * -(-config.vocab_size // ranks) * ITEM,
    })  # fmt: skip
    if any(lora_ranks) and partition == "slora":
        calls += Counter({"all-gather": 2 * layers, "all-reduce": 2 * layers})
        columns = sum(len(COLUMN_TARGETS) * -(-rank // ranks) for rank in lora_ranks)
        summed = sum(len(ROW_TARGETS) * rank for rank in lora_ranks)
        sizes += Counter({"all-gather": layers * columns * ITEM, "all-reduce": layers * summed * ITEM})
    return calls, sizes


def ring_bytes(sizes: Counter[str], ranks: int) -> float:
    """What one rank sends of it, if every collective is a ring."""
    factors = {"all-reduce": 2 * (ranks - 1) / ranks, "all-gather": ranks - 1, "gather": 1}
    return sum(factors[kind] * size for kind, size in sizes.items())
