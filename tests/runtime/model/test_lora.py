"""Adapters in pages: rank-exact, found again wherever their pages are."""

from __future__ import annotations

import torch

from lorafleet_runtime.model.adapter import AdapterWeights, LoraPair
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.lora import pack, plan_layout, views
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
