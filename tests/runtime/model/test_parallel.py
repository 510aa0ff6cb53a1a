"""Shards put together are the whole: concatenated where outputs are split, summed where inputs are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.model import parallel
from lorafleet_runtime.model.adapter import AdapterWeights, LoraPair, VocabularyUpdate
from lorafleet_runtime.model.collectives import Partition
from lorafleet_runtime.model.config import LORA_TARGETS, DecoderConfig
from lorafleet_runtime.model.errors import InvalidAdapter
from lorafleet_runtime.model.lora import plan_layout
from lorafleet_runtime.model.parallel import (
    ROW_TARGETS,
    Shard,
    check_ranks,
    rank_config,
    shard_adapter,
    shard_weight,
)
from lorafleet_runtime.model.tiny import random_weights, tiny_config
from lorafleet_runtime.model.weights import BLOCKS, expected_shapes

CONFIG = tiny_config("llama", num_heads=8, num_kv_heads=4, attention_bias=True, attention_output_bias=True)
COLUMN_TARGETS = tuple(t for t in LORA_TARGETS if t not in ROW_TARGETS)
PAGE = 96


def shards(ranks: int) -> list[Shard]:
    return [Shard(rank, ranks) for rank in range(ranks)]


def adapter(rank: int) -> AdapterWeights:
    generator = torch.Generator().manual_seed(rank)
    modules = {}
    for layer in range(CONFIG.num_layers):
        for target in LORA_TARGETS:
            out, width = CONFIG.linear_shape(target)
            a, b = torch.randn(rank, width, generator=generator), torch.randn(out, rank, generator=generator)
            modules[layer, target] = LoraPair(a, b)
    return AdapterWeights(rank, modules, LORA_TARGETS)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_rank_has_the_tensors_of_the_decoder_that_it_runs(ranks: int) -> None:
    weights = random_weights(CONFIG, 0)
    wanted = expected_shapes(rank_config(CONFIG, ranks))
    for shard in shards(ranks):
        parts = {name: shard_weight(name, tensor, shard) for name, tensor in weights.items()}
        wanted["lm_head.weight"] = (CONFIG.vocab_size // ranks, CONFIG.hidden_size)

        assert {name: tuple(part.shape) for name, part in parts.items()} == wanted


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("target", LORA_TARGETS)
def test_parts_of_a_product_make_the_product(target: str, ranks: int) -> None:
    name = f"layers.1.{BLOCKS[target]}.{target}"
    out, width = CONFIG.linear_shape(target)
    x, weight, bias = torch.randn(5, width), torch.randn(out, width), torch.randn(out)
    parts = []
    for shard in shards(ranks):
        own = shard.part(x, 1) if target in ROW_TARGETS else x
        w, b = shard_weight(f"{name}.weight", weight, shard), shard_weight(f"{name}.bias", bias, shard)
        parts.append(F.linear(own, w, b))
    whole = sum(parts) if target in ROW_TARGETS else torch.cat(parts, dim=1)

    torch.testing.assert_close(whole, F.linear(x, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("vocabulary", [264, 263, 5])
def test_rows_of_the_output_matrix_make_the_vocabulary_whatever_its_size(vocabulary: int) -> None:
    weight = torch.randn(vocabulary, 3)
    parts = [shard_weight("lm_head.weight", weight, shard) for shard in shards(4)]

    assert torch.equal(torch.cat(parts), weight)
    assert max(len(part) for part in parts) == -(-vocabulary // 4)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("target", LORA_TARGETS)
def test_an_adapters_parts_add_up_without_a_word_between_ranks(target: str, ranks: int) -> None:
    pair = adapter(6).modules[0, target]
    x = torch.randn(5, pair.a.shape[1])
    deltas = []
    for shard in shards(ranks):
        part = shard_adapter(adapter(6), shard, "replicated").modules[0, target]
        deltas.append((shard.part(x, 1) if target in ROW_TARGETS else x) @ part.a.t() @ part.b.t())
    whole = sum(deltas) if target in ROW_TARGETS else torch.cat(deltas, dim=1)

    torch.testing.assert_close(whole, x @ pair.a.t() @ pair.b.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rank", "ranks"), [(8, 2), (8, 4), (6, 4), (1, 2)])
@pytest.mark.parametrize("target", LORA_TARGETS)
def test_s_loras_parts_make_the_whole_with_their_collectives(target: str, rank: int, ranks: int) -> None:
    pair = adapter(rank).modules[0, target]
    x = torch.randn(5, pair.a.shape[1])
    parts = [shard_adapter(adapter(rank), shard, "slora").modules[0, target] for shard in shards(ranks)]
    if target in ROW_TARGETS:
        pieces = [shard.part(x, 1) @ part.a.t() for shard, part in zip(shards(ranks), parts, strict=True)]
        shrunk: Tensor = torch.stack(pieces).sum(0)
    else:
        shrunk = torch.cat([x @ part.a.t() for part in parts], dim=1)[:, :rank]

    whole = torch.cat([shrunk @ part.b.t() for part in parts], dim=1)
    torch.testing.assert_close(whole, x @ pair.a.t() @ pair.b.t(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("partition", ["replicated", "slora"])
@pytest.mark.parametrize("rank", [1, 3, 8, 30])
def test_every_rank_needs_the_same_pages_and_fewer_than_one_rank_alone(partition: Partition, rank: int) -> None:
    pages = {
        plan_layout(shard_adapter(adapter(rank), shard, partition), rank_config(CONFIG, 4), PAGE).pages
        for shard in shards(4)
    }

    assert len(pages) == 1
    assert pages.pop() < plan_layout(adapter(rank), CONFIG, PAGE).pages


def test_s_lora_keeps_nothing_twice_and_the_other_partition_keeps_half_of_it() -> None:
    def elements(weights: AdapterWeights) -> int:
        return sum(pair.a.numel() + pair.b.numel() for pair in weights.modules.values())

    slora = sum(elements(shard_adapter(adapter(8), shard, "slora")) for shard in shards(4))
    replicated = sum(elements(shard_adapter(adapter(8), shard, "replicated")) for shard in shards(4))
    twice = sum(
        (p.b if target in ROW_TARGETS else p.a).numel() for (_, target), p in adapter(8).modules.items()
    )
    assert slora == elements(adapter(8))
    assert replicated == elements(adapter(8)) + 3 * twice


@pytest.mark.parametrize(("changes", "ranks", "partition", "says"), [
    ({}, 3, "replicated", "--tensor-parallel 3 does not divide the model's 8 attention heads: use one of 1, 2, 4"),
    ({"num_kv_heads": 2}, 4, "replicated", "2 key-value heads: use one of 1, 2"),
    ({"intermediate_size": 111}, 2, "replicated", "111 intermediate features: use one of 1"),
    ({"hidden_size": 63}, 2, "slora", "63 hidden features"),
])  # fmt: skip
def test_ranks_that_do_not_divide_are_refused_with_the_counts_that_do(
    changes: dict[str, Any], ranks: int, partition: Partition, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        check_ranks(dataclasses.replace(CONFIG, **changes), ranks, partition)


def test_sizes_that_only_s_lora_splits_do_not_hinder_the_other() -> None:
    config: DecoderConfig = dataclasses.replace(CONFIG, hidden_size=63)
    check_ranks(config, 2, "replicated")


@dataclass(frozen=True, slots=True)
class Extended(AdapterWeights):
    """An adapter of a kind that a later release reads."""

    token_rows: dict[int, Tensor] = field(default_factory=dict)


def test_what_an_adapter_has_beyond_pairs_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parallel._SPLIT, Extended, parallel._SPLIT[AdapterWeights])
    plain = Extended(4, adapter(4).modules, LORA_TARGETS)
    shard_adapter(plain, Shard(0, 2), "replicated")

    with pytest.raises(InvalidAdapter, match="the adapter has token rows, which is not supported yet on a replica"):
        shard_adapter(dataclasses.replace(plain, token_rows={7: torch.ones(1)}), Shard(0, 2), "replicated")


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("target", LORA_TARGETS)
def test_scales_and_shifts_of_parts_are_those_of_the_whole(target: str, ranks: int) -> None:
    out, width = CONFIG.linear_shape(target)
    name, x, weight = f"layers.0.{BLOCKS[target]}.{target}.weight", torch.randn(5, width), torch.randn(out, width)
    whole = AdapterWeights(
        0, {}, (target,), scales={(0, target): torch.randn(out)}, shifts={(0, target): torch.randn(out)}
    )
    parts = []
    for shard in shards(ranks):
        part = shard_adapter(whole, shard, "replicated")
        y = (shard.part(x, 1) if target in ROW_TARGETS else x) @ shard_weight(name, weight, shard).t()
        parts.append(y * part.scales[0, target] + part.shifts[0, target])
    result = sum(parts) if target in ROW_TARGETS else torch.cat(parts, dim=1)

    expected = x @ weight.t() * whole.scales[0, target] + whole.shifts[0, target]
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_norms_and_vocabulary_are_whole_on_every_rank() -> None:
    vector = torch.ones(CONFIG.hidden_size)
    whole = AdapterWeights(
        0, {}, (), norms={(0, "post"): vector}, final_norm=vector, embedding=VocabularyUpdate(scale=vector),
        lm_head=VocabularyUpdate(shift=torch.ones(CONFIG.vocab_size)),
    )  # fmt: skip
    assert shard_adapter(whole, Shard(1, 2), "slora") == whole
