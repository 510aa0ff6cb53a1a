"""All layers in one native call give, bit for bit, what they give operation by operation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorafleet_kernels.batch import AttentionBatch
from lorafleet_kernels.native_lora import AdapterTable
from lorafleet_kernels.reference import LoraPart
from lorafleet_runtime.model.config import GROUPS, DecoderConfig
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.linear import Form
from lorafleet_runtime.model.lora import GroupView
from lorafleet_runtime.model.threads import set_threads
from lorafleet_runtime.model.tiny import random_weights, tiny_config

KINDS = {
    "llama": tiny_config("llama", intermediate_size=128),
    "three layers": tiny_config("llama", intermediate_size=96, num_layers=3),
    "biased": tiny_config(
        "llama", attention_bias=True, attention_output_bias=True, mlp_bias=True, intermediate_size=128
    ),
    "norms of q and k": tiny_config("qwen3", qk_norm=True, intermediate_size=128),
}
STEPS = {
    "one token": ([40], [1]),
    "decodes": ([5, 17, 40, 100, 0], [1, 1, 1, 1, 1]),
    "decodes and chunks": ([5, 17, 40, 16, 0], [1, 1, 1, 7, 45]),
    "a long chunk": ([0], [150]),
}
PAGES_EACH = 10


def on_tiles(config: DecoderConfig) -> Decoder:
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in random_weights(config, 0).items()}
    model = Decoder(config, weights, 256)
    linears = [linear for linear in model.linears() if linear is not model.lm_head]
    if not all(model.ops.tiles_fit(linear.weight) for linear in linears):
        pytest.skip("no matrix tiles here")
    for linear in linears:
        linear.use(Form.TILES, model.ops)
    return model


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape).to(torch.bfloat16)


def adapter(config: DecoderConfig, rank: int) -> AdapterTable:
    """On all projections of all layers but the first, which it leaves alone."""
    layers: list[dict[str, GroupView]] = [{}]
    for _ in range(config.num_layers - 1):
        groups = {}
        for group, targets in GROUPS.items():
            parts, column, inputs = [], 0, config.linear_shape(targets[0])[1]
            for target in targets:
                out = config.linear_shape(target)[0]
                parts.append(LoraPart(column, column + out, normal(rank, out) / 8))
                column += out
            groups[group] = GroupView(normal(rank * len(targets), inputs) / 8, tuple(parts))
        layers.append(groups)
    return AdapterTable.of(layers)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapters"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_call_gives_what_its_operations_give(kind: str, step: str, adapted: bool, workers: int) -> None:
    torch.manual_seed(7)
    config = KINDS[kind]
    model = on_tiles(config)
    starts, counts = STEPS[step]
    tokens = torch.randint(0, config.vocab_size, (sum(counts),))
    batch = AttentionBatch(
        [start + i for start, count in zip(starts, counts, strict=True) for i in range(count)],
        counts,
        [list(range(i * PAGES_EACH, (i + 1) * PAGES_EACH)) for i in range(len(counts))],
        sum(count == 1 for count in counts),
    )
    pool = normal(config.num_layers, len(counts) * PAGES_EACH, 2, 16, config.num_kv_heads, config.head_dim)
    tables = [adapter(config, rank) for rank in (5, 16)]
    rows = len(tokens)
    segments = [(0, -(-rows // 3), tables[0]), (-(-rows // 3), max(1, rows - 1), tables[1])]
    used = [s for s in segments if s[0] < s[1]]

    def run(pool: Tensor) -> Tensor:
        attend = model.ops.attention(pool, batch, model.heads, model.rope)
        return model.forward(tokens, attend, model.ops.lora(used) if adapted else None)

    set_threads(workers)
    apart_pool, joined_pool = pool.clone(), pool.clone()
    apart = run(apart_pool)
    model.join_layers()
    joined = run(joined_pool)

    assert model.joined
    assert torch.equal(joined, apart)
    assert torch.equal(joined_pool, apart_pool), "the same keys and values"


class Ranks:
    """The collectives of a rank whose part is all there is; counts the sums."""

    rank, size, sums = 0, 1, 0

    def all_reduce(self, part: Tensor) -> Tensor:
        self.sums += 1
        return part

    def all_gather(self, part: Tensor) -> Tensor:
        return part.unsqueeze(0)

    def gather_columns(self, part: Tensor, columns: int) -> Tensor:
        return part


def test_a_rank_sums_after_every_row_layer_though_its_layers_were_joined_before_it_met_the_others() -> None:
    config = KINDS["llama"]
    model = on_tiles(config)
    model.join_layers()
    model.collectives = ranks = Ranks()
    pool = normal(config.num_layers, PAGES_EACH, 2, 16, config.num_kv_heads, config.head_dim)
    batch = AttentionBatch([0, 1, 2], [3], [list(range(PAGES_EACH))], 0)
    model.forward(torch.tensor([1, 2, 3]), model.ops.attention(pool, batch, model.heads, model.rope), None)
    assert ranks.sums == 2 * config.num_layers


def test_layers_are_not_joined_while_a_product_is_in_another_form() -> None:
    config = KINDS["llama"]
    model = Decoder(config, {n: t.to(torch.bfloat16) for n, t in random_weights(config, 0).items()}, 64)
    model.join_layers()
    assert not model.joined
