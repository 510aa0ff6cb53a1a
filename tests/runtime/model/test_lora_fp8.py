"""Adapters in fp8 in pages: half as many, found again wherever they are, extras untouched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lorafleet_kernels.fp8_rows import dequantise, quantise
from lorafleet_runtime.model.adapter_weights import AdapterWeights, LoraPair
from lorafleet_runtime.model.config import GROUPS
from lorafleet_runtime.model.errors import InvalidAdapter
from lorafleet_runtime.model.extras import SCALE, extra_views
from lorafleet_runtime.model.lora import grain_for, pack, plan_layout, vectors_in
from lorafleet_runtime.model.lora_fp8 import fp8_matrices, pack_fp8, plan_fp8
from lorafleet_runtime.model.tiny import tiny_config
from tests.runtime.model.test_lora import weights_of

CONFIG = tiny_config("llama")
PAGE = 32 * CONFIG.kv_dim
GRAIN = grain_for(CONFIG, PAGE)
TARGETS = [target for targets in GROUPS.values() for target in targets]
EVERYWHERE = [(layer, target) for layer in range(CONFIG.num_layers) for target in TARGETS]


@pytest.mark.parametrize("hidden", [64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_are_found_as_they_were_quantised(dtype: torch.dtype, hidden: int) -> None:
    config = replace(CONFIG, hidden_size=hidden)
    ranks = {(0, "q_proj"): 3, (0, "v_proj"): 7, (1, "gate_proj"): 2, (1, "up_proj"): 9, (0, "o_proj"): 1}
    weights = weights_of(config, ranks)
    packed = pack_fp8(weights, config, PAGE, dtype, 16)
    pages = list(range(2 * packed.layout.pages, 0, -2))
    pool = torch.full((config.num_layers, 2 * len(pages) + 1, PAGE), float("nan"), dtype=dtype)
    pool.view(torch.uint8).index_copy_(1, torch.tensor(pages), packed.blob)

    layers = fp8_matrices(vectors_in(pool.view(torch.uint8), pages), packed.layout)

    for layer, groups in enumerate(packed.layout.layers):
        for group, slices in groups.items():
            view, begin = layers[layer][group], 0
            targets = [t for t in GROUPS[group] if (layer, t) in ranks]
            for target, s, part in zip(targets, slices, view.parts, strict=True):
                pair = weights.modules[layer, target]
                (a, of_a), (b, of_b) = quantise(pair.a), quantise(pair.b.t())
                assert torch.equal(view.a[begin : begin + s.rank], dequantise(a, of_a * of_b))
                assert torch.equal(part.b, dequantise(b, torch.ones(s.rank)))
                assert {s.a % 16, s.b % 16} == {0}
                begin += s.rank
    assert set(layers[1]) == {"gate_up"}


def test_an_adapter_takes_half_the_pages_and_a_scale_for_each_rank() -> None:
    weights = weights_of(CONFIG, dict.fromkeys(EVERYWHERE, 64))

    whole = pack(weights, CONFIG, PAGE, torch.bfloat16, GRAIN)
    half = pack_fp8(weights, CONFIG, PAGE, torch.bfloat16, GRAIN)

    elements = 64 * sum(sum(CONFIG.linear_shape(target)) for target in TARGETS)
    assert whole.layout.pages == -(-elements // PAGE)
    assert half.layout.pages == -(-(elements + 4 * 7 * 64) // (2 * PAGE))
    assert half.blob.nbytes / whole.blob.nbytes == half.layout.pages / whole.layout.pages < 0.53


def test_of_four_byte_pools_it_takes_a_quarter() -> None:
    weights = weights_of(CONFIG, dict.fromkeys(EVERYWHERE, 64))

    assert plan_fp8(weights, CONFIG, 4 * PAGE, 4, GRAIN).pages <= plan_layout(weights, CONFIG, PAGE, GRAIN).pages / 3.8


def test_what_is_no_pair_keeps_the_pools_type() -> None:
    weights = weights_of(CONFIG, {(0, "q_proj"): 3, (1, "o_proj"): 2})
    width = CONFIG.linear_shape("o_proj")[0]
    factors = torch.linspace(0.5, 1.5, width)
    with_extras = replace(weights, scales={(1, "o_proj"): factors}, final_norm=torch.arange(float(CONFIG.hidden_size)))
    packed = pack_fp8(with_extras, CONFIG, PAGE, torch.float32, GRAIN)
    assert packed.layout.extras is not None

    vectors = packed.blob.flatten(1)
    found = extra_views(vectors.view(torch.float32), packed.layout.extras)

    assert torch.equal(found.layers[1][SCALE + "o"], factors)
    assert torch.equal(found.spreads["final_norm"].vector(), torch.arange(float(CONFIG.hidden_size)))
    plain = pack_fp8(weights, CONFIG, PAGE, torch.float32, GRAIN)
    for mine, without in zip(
        fp8_matrices(vectors, packed.layout), fp8_matrices(plain.blob.flatten(1), plain.layout), strict=True
    ):
        assert mine.keys() == without.keys()
        assert all(torch.equal(mine[group].a, without[group].a) for group in mine)


def test_an_adapter_without_pairs_is_packed() -> None:
    weights = AdapterWeights(0, {}, (), final_norm=torch.ones(CONFIG.hidden_size))

    packed = pack_fp8(weights, CONFIG, PAGE, torch.bfloat16, GRAIN)

    assert packed.layout.pages == 1
    assert not packed.layout.adapts_projections


def test_numbers_that_fp8_does_not_hold_are_told_with_layer_and_target() -> None:
    weights = weights_of(CONFIG, {(1, "o_proj"): 2})
    pair = weights.modules[1, "o_proj"]
    large = AdapterWeights(2, {(1, "o_proj"): LoraPair(pair.a, pair.b * 1e20)}, ("o_proj",))

    with pytest.raises(InvalidAdapter, match=r"layer 1, o_proj: .* is above .*--adapter-dtype auto"):
        pack_fp8(large, CONFIG, PAGE, torch.bfloat16, GRAIN)


def test_a_grain_that_scales_do_not_fit_is_refused() -> None:
    weights = weights_of(CONFIG, {(1, "o_proj"): 2})
    with pytest.raises(ValueError, match="a grain of 2 bytes"):
        plan_fp8(weights, CONFIG, 2 * PAGE, 2, 2)
    with pytest.raises(ValueError, match="a grain of 48 bytes does not divide the page"):
        plan_fp8(weights, CONFIG, 2 * PAGE, 2, 48)
