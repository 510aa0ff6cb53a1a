"""Rotation behind an expand: what the separate launches compute, bit for bit, with one launch less."""

from __future__ import annotations

import pytest
import torch

from lorafleet_kernels.batch import HeadSizes
from lorafleet_kernels.gpu.forms.lora import Variant
from lorafleet_runtime.model.config import DecoderConfig
from tests.kernels.gpu import lora_kit
from tests.kernels.gpu.attention_twin import DTYPES, LAYER, a_case
from tests.kernels.gpu.lora_kit import ODD, USUAL, Ranks

pytestmark = pytest.mark.interpreted

ADAPTERS: tuple[Ranks, ...] = ({"q_proj": 3, "k_proj": 18, "v_proj": 1}, {}, {"v_proj": 5})
SEGMENTS = ((0, 1, 0), (1, 2, -1), (2, 4, 2), (4, 5, 1), (5, 6, 0))


@pytest.mark.parametrize("config", [USUAL, ODD], ids=["usual", "odd"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_keys_and_values_with_their_deltas(
    dtype: torch.dtype, config: DecoderConfig, device: torch.device
) -> None:
    sizes = HeadSizes(config.num_heads, config.num_kv_heads, config.head_dim, 1e-5)
    case = a_case(dtype, sizes, [1, 20], [(5, 4)], device, norms=True)
    lora = lora_kit.make(ADAPTERS, SEGMENTS, dtype, device, rows=6, config=config, variant=Variant.ROWS)
    x = lora.inputs(6, config.hidden_size)
    expected, mine, apart, fused = case.pool.clone(), case.pool.clone(), case.qkv.clone(), case.qkv.clone()
    plain, (q_norm, k_norm) = case.pool.clone(), case.norms

    without = case.attention(plain)(LAYER, case.qkv.clone(), *case.norms)
    lora.step(LAYER, "qkv", x, apart)
    wanted = case.attention(expected)(LAYER, apart, *case.norms)
    lora.step.shrink(LAYER, "qkv", x)
    got = case.attention(mine)(LAYER, fused, q_norm, k_norm, lora.step.pending(LAYER, "qkv", fused))

    assert torch.equal(fused[:, : sizes.heads * sizes.size], apart[:, : sizes.heads * sizes.size])
    assert torch.equal(mine.nan_to_num(7), expected.nan_to_num(7))
    assert torch.equal(got, wanted)
    changed = (got != without).any(1).cpu()
    assert changed.tolist() == [True, False, True, True, True, True], "which rows the adapters changed"
