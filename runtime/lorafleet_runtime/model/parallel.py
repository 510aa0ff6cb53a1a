"""Tensor parallelism as arithmetic on shapes: which part of which tensor a rank holds. Pure; knows no processes.

Megatron's layout: q, k, v, gate and up are split by output columns (whole heads), o and down by input rows, so that
each layer needs two all-reduces, after o and after down. An adapter follows in one of two ways:

- `replicated`: A whole and B split for column layers, A split and B whole for row layers. A rank's delta of a row layer
  is a part of a sum, as the base's own is: (x_i A_iᵀ) Bᵀ adds up over ranks, since the product is linear. So it goes
  into the base's all-reduce and LoRA adds no collective. A of column layers and B of row layers are kept N times.
- `slora`: nothing is kept twice [S-LoRA 6, figure 4]. Column layers split A along its rank, all-gather the shrunk
  rows and split B; row layers split A by input, all-reduce the shrunk rows and split B by output, and each rank adds
  its columns to its part of the base's sum. Four more collectives a layer, small ones.

What an adapter has beyond pairs goes with its layer's output: scales and shifts of column layers are split; of row
layers, scales multiply every part of the sum, and shifts are the first rank's to add. Norms and what changes the
embedding or lm_head are whole on every rank, and the first one applies lm_head's to the gathered logits.

The embedding is whole on every rank: one read of a few rows, where a split one would need an all-reduce before the
first layer. The output matrix, read whole in every step, is split by rows of the vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Sized
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.model.adapter_weights import AdapterWeights, LoraPair
from lorafleet_runtime.model.collectives import Partition
from lorafleet_runtime.model.config import LORA_TARGETS, DecoderConfig
from lorafleet_runtime.model.errors import InvalidAdapter

ROW_TARGETS = ("o_proj", "down_proj")
_SPLIT: dict[type, set[str]] = {
    AdapterWeights: {
        "rank", "modules", "targets", "warnings", "scales", "shifts", "norms", "final_norm", "embedding", "lm_head",
    },
    LoraPair: {"a", "b"},
}  # fmt: skip
"""What `shard_adapter` knows how to spread; anything else that an adapter has is refused by its name."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part: `rank` of `ranks`."""

    rank: int = 0
    ranks: int = 1

    def part(self, tensor: Tensor, dimension: int) -> Tensor:
        """An equal share of a dimension that `ranks` divides."""
        return tensor.chunk(self.ranks, dimension)[self.rank] if self.ranks > 1 else tensor

    def rows(self, tensor: Tensor) -> Tensor:
        """A share of rows that need not divide: ⌈n / ranks⌉, and what is left for the last ranks."""
        each = -(-tensor.shape[0] // self.ranks)
        return tensor[min(self.rank * each, tensor.shape[0]) : (self.rank + 1) * each]


def check_ranks(config: DecoderConfig, ranks: int, partition: Partition) -> None:
    """Raises ConfigError when the decoder cannot be spread over so many ranks, with the counts that it can."""
    sizes = {
        "attention heads": config.num_heads,
        "key-value heads": config.num_kv_heads,
        "intermediate features": config.intermediate_size,
    }
    if partition == "slora":
        sizes["hidden features"] = config.hidden_size
    for what, size in sizes.items():
        if size % ranks:
            fits = [n for n in range(1, min(sizes.values()) + 1) if all(s % n == 0 for s in sizes.values())]
            raise ConfigError(
                f"--tensor-parallel {ranks} does not divide the model's {size} {what}: use one of "
                f"{', '.join(map(str, fits))}"
            )


def rank_config(config: DecoderConfig, ranks: int) -> DecoderConfig:
    """The decoder that one rank runs: its heads and its share of the MLP, at full hidden size."""
    return dataclasses.replace(
        config,
        num_heads=config.num_heads // ranks,
        num_kv_heads=config.num_kv_heads // ranks,
        intermediate_size=config.intermediate_size // ranks,
    )


def shard_weight(name: str, tensor: Tensor, shard: Shard) -> Tensor:
    """A rank's part of a tensor of `weights.expected_shapes`: a view, except for the biases of o and down, which are
    the first rank's to add and zero elsewhere."""
    if name == "lm_head.weight":
        return shard.rows(tensor)
    module, _, kind = name.rpartition(".")
    target = module.rpartition(".")[2]
    if target not in LORA_TARGETS or shard.ranks == 1:
        return tensor
    if target not in ROW_TARGETS:
        return shard.part(tensor, 0)
    return _shift(target, tensor, shard) if kind == "bias" else shard.part(tensor, 1)


def shard_adapter(weights: AdapterWeights, shard: Shard, partition: Partition) -> AdapterWeights:
    """A rank's part of an adapter. Every rank's has the same shapes, so it takes the same number of pages.

    Raises InvalidAdapter naming what an adapter has that cannot be spread yet.
    """
    if shard.ranks == 1:
        return weights
    _refuse_what_is_not_split(weights)
    for pair in weights.modules.values():
        _refuse_what_is_not_split(pair)
    split = _slora_pair if partition == "slora" else _replicated_pair
    return dataclasses.replace(
        weights,
        modules={(layer, target): split(target, p, shard) for (layer, target), p in weights.modules.items()},
        scales={(layer, t): v if t in ROW_TARGETS else shard.part(v, 0) for (layer, t), v in weights.scales.items()},
        shifts={(layer, t): _shift(t, v, shard) for (layer, t), v in weights.shifts.items()},
    )


def _refuse_what_is_not_split(holder: AdapterWeights | LoraPair) -> None:
    for field in dataclasses.fields(holder):
        value = getattr(holder, field.name)
        empty = value is None or (isinstance(value, Sized) and len(value) == 0)
        if field.name not in _SPLIT[type(holder)] and not empty:
            raise InvalidAdapter(
                f"the adapter has {field.name.replace('_', ' ')}, which is not supported yet on a replica of several "
                "ranks: serve it from a base model with tensorParallel 1"
            )


def _shift(target: str, vector: Tensor, shard: Shard) -> Tensor:
    """As a bias of the base model."""
    if target not in ROW_TARGETS:
        return shard.part(vector, 0)
    return vector if shard.rank == 0 else vector.new_zeros(vector.shape)


def _replicated_pair(target: str, pair: LoraPair, shard: Shard) -> LoraPair:
    if target in ROW_TARGETS:
        return LoraPair(shard.part(pair.a, 1), pair.b)
    return LoraPair(pair.a, shard.part(pair.b, 0))


def _slora_pair(target: str, pair: LoraPair, shard: Shard) -> LoraPair:
    """`a` of column layers has ⌈R / ranks⌉ rows, zeros where R does not divide: equal parts can be gathered."""
    if target in ROW_TARGETS:
        return LoraPair(shard.part(pair.a, 1), shard.part(pair.b, 0))
    a = shard.rows(pair.a)
    missing = -(-pair.a.shape[0] // shard.ranks) - a.shape[0]
    return LoraPair(F.pad(a, (0, 0, 0, missing)), shard.part(pair.b, 0))
