"""Adapters in pages: rank-exact, found again wherever their pages are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lorafleet_runtime.model.adapter import AdapterWeights, LoraPair
from lorafleet_runtime.model.config import GROUPS, DecoderConfig
from lorafleet_runtime.model.lora import grain_for, pack, plan_layout, views
from lorafleet_runtime.model.tiny import tiny_config

PAGE = 128


def weights_of(config: DecoderConfig, modules: dict[tuple[int, str], int]) -> AdapterWeights:
    """Random pairs of the given ranks."""
    generator = torch.Generator().manual_seed(0)
    pairs = {}
    for (layer, target), rank in modules.items():
        out, k = config.linear_shape(target)
        a, b = torch.randn(rank, k, generator=generator), torch.randn(out, rank, generator=generator)
        pairs[layer, target] = LoraPair(a, b)
    return AdapterWeights(max(modules.values()), pairs, tuple({target for _, target in modules}))


def test_an_adapter_takes_the_pages_of_its_longest_layer_and_no_more() -> None:
    config = tiny_config("llama")
    modules = {(0, "q_proj"): 3, (1, "q_proj"): 3, (1, "down_proj"): 5}

    layout = plan_layout(weights_of(config, modules), config, PAGE)

    q_out, q_in = config.linear_shape("q_proj")
    down_out, down_in = config.linear_shape("down_proj")
    elements = 3 * (q_out + q_in) + 5 * (down_out + down_in)
    assert layout.pages == -(-elements // PAGE)


def test_matrices_are_found_in_consecutive_and_in_scattered_pages() -> None:
    config = tiny_config("llama")
    ranks = {(0, "q_proj"): 3, (0, "v_proj"): 7, (1, "gate_proj"): 2, (1, "up_proj"): 9, (0, "o_proj"): 1}
    weights = weights_of(config, ranks)
    packed = pack(weights, config, PAGE, torch.float32)
    count = packed.layout.pages
    for pages in (list(range(4, 4 + count)), list(range(2 * count, 0, -2))):
        pool = torch.full((config.num_layers, 2 * count + 8, PAGE), float("nan"))
        pool.index_copy_(1, torch.tensor(pages), packed.blob)

        layers = views(pool, pages, packed.layout)

        qkv = layers[0]["qkv"]
        assert torch.equal(qkv.a[:3], weights.modules[0, "q_proj"].a)
        assert torch.equal(qkv.a[3:], weights.modules[0, "v_proj"].a)
        assert torch.equal(qkv.parts[1].b, weights.modules[0, "v_proj"].b.t())
        assert (qkv.parts[1].begin, qkv.parts[1].end) == (
            config.q_dim + config.kv_dim,
            config.q_dim + 2 * config.kv_dim,
        )
        assert set(layers[1]) == {"gate_up"}


def test_adapters_with_the_same_ranks_have_the_same_signature() -> None:
    config = tiny_config("llama")
    one = plan_layout(weights_of(config, {(0, "q_proj"): 4}), config, PAGE)
    same = plan_layout(weights_of(config, {(0, "q_proj"): 4}), config, PAGE)
    other = plan_layout(weights_of(config, {(1, "q_proj"): 4}), config, PAGE)

    assert one.signature == same.signature
    assert one.signature != other.signature
    assert len({one.signature, same.signature, other.signature}) == 2


@pytest.mark.parametrize(
    ("hidden", "intermediate", "kv_heads", "head_dim", "expected"),
    [
        (4096, 14336, 8, 128, 256),  # Llama 3 8B
        (896, 4864, 2, 64, 128),  # Qwen2.5 0.5B
        (64, 176, 2, 16, 16),
        (100, 36, 1, 20, 16),  # divides nothing: rows are padded
    ],
)
def test_the_grain_divides_every_width_and_the_page_where_16_does(
    hidden: int, intermediate: int, kv_heads: int, head_dim: int, expected: int
) -> None:
    config = replace(
        tiny_config("llama"), hidden_size=hidden, intermediate_size=intermediate, head_dim=head_dim,
        num_heads=hidden // head_dim, num_kv_heads=kv_heads,
    )  # fmt: skip

    assert grain_for(config, 16 * 2 * config.kv_dim) == expected


def test_a_page_that_rows_would_cross_anywhere_has_no_grain() -> None:
    with pytest.raises(ValueError, match="a page of 24 elements is no multiple of 16"):
        grain_for(tiny_config("llama"), 24)
    with pytest.raises(ValueError, match="a grain of 64 elements does not divide the page of 96"):
        plan_layout(weights_of(tiny_config("llama"), {(0, "q_proj"): 1}), tiny_config("llama"), 96, 64)


@pytest.mark.parametrize("grain", [1, 16, 64])
@pytest.mark.parametrize("hidden", [64, 100])
def test_rows_begin_at_the_grain_and_are_found_whole(grain: int, hidden: int) -> None:
    config = replace(tiny_config("llama"), hidden_size=hidden)
    ranks = {(0, "q_proj"): 3, (0, "k_proj"): 1, (1, "gate_proj"): 2, (1, "up_proj"): 9, (1, "down_proj"): 5}
    weights = weights_of(config, ranks)
    packed = pack(weights, config, PAGE, torch.float32, grain)
    pages = list(range(2 * packed.layout.pages, 0, -2))
    pool = torch.full((config.num_layers, 2 * len(pages) + 1, PAGE), float("nan"))
    pool.index_copy_(1, torch.tensor(pages), packed.blob)

    layers = views(pool, pages, packed.layout)

    for layer, groups in enumerate(packed.layout.layers):
        for group, slices in groups.items():
            targets = [t for t in GROUPS[group] if (layer, t) in ranks]
            a = torch.cat([weights.modules[layer, t].a for t in targets])
            assert torch.equal(layers[layer][group].a, a)
            for target, s, part in zip(targets, slices, layers[layer][group].parts, strict=True):
                assert torch.equal(part.b, weights.modules[layer, target].b.t())
                assert {s.a % grain, s.b % grain, s.a_stride % grain, s.b_stride % grain} == {0}
    assert packed.layout.signature != plan_layout(weights, config, PAGE, 32).signature


def test_a_grain_that_divides_all_widths_costs_no_page() -> None:
    config = replace(tiny_config("llama"), hidden_size=64, intermediate_size=128)
    weights = weights_of(config, dict.fromkeys([(0, "q_proj"), (0, "down_proj"), (1, "o_proj")], 7))

    assert plan_layout(weights, config, PAGE, grain_for(config, PAGE)).pages == plan_layout(weights, config, PAGE).pages
