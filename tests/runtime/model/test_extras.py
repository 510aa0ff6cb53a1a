"""What is no LoRA pair of a projection lies in the same pages, and is found again exactly, wherever they are."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafleet_runtime.model.adapter_weights import AdapterWeights, LoraPair, VocabularyUpdate
from lorafleet_runtime.model.config import GROUPS, DecoderConfig
from lorafleet_runtime.model.extras import SpreadView, extra_views
from lorafleet_runtime.model.lora import pack, vectors_in, views
from lorafleet_runtime.model.tiny import tiny_config

PAGE = 64
flags = st.sets(
    st.sampled_from(["full", "scale", "pair", "rows", "shift", "norms", "final", "scales", "shifts", "modules"]),
    min_size=1,
)


def weights_of(config: DecoderConfig, parts: set[str], rank: int, seed: int) -> AdapterWeights:
    """Random values of the named parts: vocabulary parts of both matrices, vectors of layer 0 and of the last."""
    torch.manual_seed(seed)
    v, h, last = config.vocab_size, config.hidden_size, config.num_layers - 1

    def update(width: int) -> VocabularyUpdate | None:
        made: dict[str, Any] = {
            "full": torch.randn(v, h), "scale": torch.randn(width), "rows": torch.randn(3, h),
            "pair": LoraPair(torch.randn(rank, h), torch.randn(v, rank)), "shift": torch.randn(v),
        }  # fmt: skip
        kept = {name: value for name, value in made.items() if name in parts}
        return VocabularyUpdate(**kept, tokens=(1, 5, 9) if "rows" in kept else ()) if kept else None

    places = [(0, "q_proj"), (last, "k_proj"), (last, "down_proj")]
    vectors = {at: torch.randn(config.linear_shape(at[1])[0]) for at in places}
    pairs = {(0, "v_proj"): LoraPair(torch.randn(rank, h), torch.randn(config.kv_dim, rank))}
    return AdapterWeights(
        rank=rank,
        modules=pairs if "modules" in parts else {},
        targets=(),
        scales=vectors if "scales" in parts else {},
        shifts=vectors if "shifts" in parts else {},
        norms={(last, "post"): torch.randn(h), (0, "q"): torch.randn(config.head_dim)} if "norms" in parts else {},
        final_norm=torch.randn(h) if "final" in parts else None,
        embedding=update(h),
        lm_head=update(v),
    )


@settings(max_examples=60)
@given(flags, st.integers(1, 5), st.integers(1, 3), st.integers(20, 31), st.booleans())
def test_every_part_is_found_in_consecutive_and_in_scattered_pages(
    parts: set[str], layers: int, rank: int, vocabulary: int, scattered: bool
) -> None:
    config = tiny_config("qwen3", num_layers=layers, vocab_size=vocabulary)
    weights = weights_of(config, parts, rank, seed=layers)
    packed = pack(weights, config, PAGE, torch.float32)
    count = packed.layout.pages
    pages = list(range(2 * count, 0, -2)) if scattered else list(range(3, 3 + count))
    pool = torch.full((layers, 2 * count + 4, PAGE), float("nan"))
    pool.index_copy_(1, torch.tensor(pages), packed.blob)

    if (0, "v_proj") in weights.modules:
        assert torch.equal(views(pool, pages, packed.layout)[0]["qkv"].a, weights.modules[0, "v_proj"].a)
    if packed.layout.extras is None:
        assert parts == {"modules"}
        return
    found = extra_views(vectors_in(pool, pages), packed.layout.extras)
    for (layer, target), scale in weights.scales.items():
        group = next(g for g, targets in GROUPS.items() if target in targets)
        pieces = torch.split(found.layers[layer][f"scale.{group}"], [config.linear_shape(t)[0] for t in GROUPS[group]])
        for name, piece in zip(GROUPS[group], pieces, strict=True):
            assert torch.equal(piece, weights.scales.get((layer, name), torch.ones_like(piece)))
            shift = found.layers[layer].get(f"shift.{group}")
            assert (shift is None) == (not weights.shifts)
        assert scale.shape == config.linear_shape(target)[:1]
    for (layer, norm), weight in weights.norms.items():
        assert torch.equal(found.layers[layer][f"norm.{norm}"], weight)
    if weights.final_norm is not None:
        assert torch.equal(found.spreads["final_norm"].vector(), weights.final_norm)
    for prefix, update in (("embedding", weights.embedding), ("lm_head", weights.lm_head)):
        if update is not None:
            assert_update(found.spreads, prefix, update)


def assert_update(spreads: Any, prefix: str, update: VocabularyUpdate) -> None:
    expected = {"full": update.full, "rows": update.rows}
    if update.pair is not None:
        expected |= {"a": update.pair.a.t(), "b": update.pair.b}
    for name, matrix in expected.items():
        if matrix is not None:
            assert_matrix(spreads[f"{prefix}.{name}"], matrix)
    for name, vector in (("scale", update.scale), ("shift", update.shift)):
        if vector is not None:
            assert torch.equal(spreads[f"{prefix}.{name}"].vector(), vector)


def assert_matrix(view: SpreadView, matrix: torch.Tensor) -> None:
    ids = torch.randint(len(matrix), (7,))
    x = torch.randn(4, matrix.shape[1])
    assert torch.equal(view.matrix(), matrix)
    assert torch.equal(view.lookup(ids), matrix[ids])
    torch.testing.assert_close(view.product(x), x @ matrix.t())


def test_a_vocabulary_matrix_costs_its_share_of_every_layers_pages() -> None:
    config = tiny_config("llama", num_layers=4)
    full = torch.randn(config.vocab_size, config.hidden_size)
    weights = AdapterWeights(0, {}, (), lm_head=VocabularyUpdate(full=full))

    pages = pack(weights, config, PAGE, torch.float32).layout.pages

    assert pages == -(-(config.vocab_size // 4) * config.hidden_size // PAGE)
    assert pages * PAGE * config.num_layers >= full.numel()


def test_plain_lora_has_the_same_signature_beside_other_parts() -> None:
    config = tiny_config("llama")
    signatures = [
        pack(weights_of(config, parts, 2, 0), config, PAGE, torch.float32).layout.signature
        for parts in ({"modules"}, {"modules", "scales", "full"})
    ]

    assert signatures[0] == signatures[1]
