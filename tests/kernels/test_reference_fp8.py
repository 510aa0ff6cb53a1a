"""Keys and values of 8 bits: what their scales promise, and what they cost heads like a model's, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorafleet_kernels.batch import AttentionBatch, HeadSizes
from lorafleet_kernels.reference_attention import ReferenceAttention, Scratch
from lorafleet_kernels.reference_fp8 import FP8, LARGEST, TOPS, ReferenceFp8Attention, kv_write, quantise, restore

STEP = 2.0**-4
"""Half a step of e4m3, as a part of an element."""
ROUNDED = 1 + 2.0**-8
"""What rounding a scale to bfloat16 may add."""


def read_back(x: Tensor) -> Tensor:
    """`x [heads, D]` as it is written as the first key of a page, and read."""
    data = torch.zeros(1, 2, 16, *x.shape).to(FP8)
    scales = torch.ones(1, x.shape[0], 16, 2, dtype=torch.bfloat16)
    kv_write(data, scales, x.unsqueeze(0), x.unsqueeze(0), torch.tensor([0]), torch.tensor([0]))
    return restore(data, scales, torch.float64)[0, 0, 0]


@pytest.mark.parametrize("magnitude", [1e-12, 3e-3, 1.0, 448.0, 7e4, 1e12])
def test_an_element_is_off_by_half_a_step_at_most_whatever_its_heads_magnitude(magnitude: float) -> None:
    x = magnitude * torch.randn(6, 64, generator=torch.Generator().manual_seed(0))

    off = (read_back(x) - x.double()).abs()

    # Far below the largest of its head an element has the smallest step there is.
    floor = x.abs().amax(1, keepdim=True) / min(TOPS) * 2**-10
    assert bool((off <= ROUNDED * torch.maximum(STEP * x.abs(), floor)).all())
    assert bool((off > 0.5 * STEP * x.abs()).any())


def test_the_largest_element_is_kept_nearly_whole() -> None:
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    at = x.abs().argmax(1, keepdim=True)

    found, wanted = read_back(x).gather(1, at), x.gather(1, at)

    assert float(((found - wanted) / wanted).abs().max()) < 2.0**-8


def test_the_scale_taken_is_the_one_of_four_that_changes_a_head_least() -> None:
    x = torch.randn(50, 128, generator=torch.Generator().manual_seed(0))
    tried = []
    for top in TOPS:
        scale = (x.abs().amax(1, keepdim=True) / top).bfloat16().float()
        tried.append(((x / scale).clamp(-LARGEST, LARGEST).to(FP8).float() * scale - x).norm(dim=1))

    best = torch.stack(tried).amin(0).double()

    assert torch.allclose((read_back(x) - x).norm(dim=1), best, rtol=0.01)
    assert len(set(torch.stack(tried).argmin(0).tolist())) == len(TOPS), "one of the four is never the best"


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_head_that_is_not_finite_stays_so_and_no_other(bad: float) -> None:
    x = torch.ones(3, 32)
    x[1, 5] = bad

    back = read_back(x)

    assert back[1].isnan().all()
    assert torch.allclose(back[[0, 2]], torch.ones(2, 32, dtype=torch.float64), rtol=2.0**-8)


def test_features_lie_in_pairs_of_what_rotation_turns_together() -> None:
    elements, scales = quantise(torch.tensor([[448.0, 64.0, 96.0, 128.0, 160.0, 192.0, 224.0, 256.0]]))

    assert (elements.float() * scales.float()).tolist() == [[448.0, 160.0, 64.0, 192.0, 96.0, 224.0, 128.0, 256.0]]


def kept(q: Tensor, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
    """One decode row's attention `[heads · D]` over `keys, values [tokens, kv_heads, D]`: in float64, over pages of 8
    bits, and over plain casts to e4m3, as without scales."""
    tokens, kv_heads, size = keys.shape
    sizes = HeadSizes(q.shape[0], kv_heads, size, 1e-6)
    count = -(-tokens // 16)
    pages, offsets = torch.arange(tokens) // 16, torch.arange(tokens) % 16
    batch = AttentionBatch([tokens - 1], [1], [list(range(count))], 1)
    tables = (torch.ones(tokens, 1, size), torch.zeros(tokens, 1, size))
    exact, bare = torch.zeros(1, count, 2, 16, kv_heads, size), torch.zeros(1, count, 2, 16, kv_heads, size)
    data, scales = exact.to(FP8), torch.zeros(1, count, kv_heads, 16, 2, dtype=torch.bfloat16)
    kv_write(data[0], scales[0], keys, values, pages, offsets)
    cast = [x.clamp(-LARGEST, LARGEST).to(FP8).float() for x in (keys, values)]
    for pool, own in ((exact, (keys, values)), (bare, cast)):
        pool[0, pages, 0, offsets], pool[0, pages, 1, offsets] = own
    wide = (tables[0].double(), tables[1].double())
    last, last_cast = (torch.cat((q, k[-1], v[-1])).view(1, -1) for k, v in ((keys, values), cast))
    return {
        "exact": ReferenceAttention(exact.double(), batch, sizes, wide, Scratch())(0, last.double(), None, None)[0],
        "fp8": ReferenceFp8Attention(data, scales, batch, sizes, tables)(0, last, None, None)[0],
        "cast": ReferenceAttention(bare, batch, sizes, tables, Scratch())(0, last_cast, None, None)[0],
    }


@pytest.mark.parametrize(
    ("outlier", "small", "gain"),
    [
        (30.0, 1.0, 0.95),  # keys with two channels of 30 times the rest: 0.038 was measured, and without scales
        (30.0, 0.002, 5.0),  # values that e4m3 hardly has: 0.038 with scales, 0.28 without
        (900.0, 1.0, 2.0),  # keys beyond 448: 0.036, 0.081
    ],
)
def test_outputs_over_heads_like_a_models_are_near_those_in_full(outlier: float, small: float, gain: float) -> None:
    generator = torch.Generator().manual_seed(1)
    keys, values = (torch.randn(200, 2, 128, generator=generator) for _ in range(2))
    keys[:, :, [7, 71]] = outlier * (1 + 0.2 * keys[:, :, [7, 71]])
    q = torch.randn(8, 128, generator=generator)
    q[:, [7, 71]] *= 3 / outlier  # a query asks little of such channels, else one token alone is heard

    out = kept(q, keys, small * values)

    exact = out["exact"]
    error, without = (float((out[name].double() - exact).norm() / exact.norm()) for name in ("fp8", "cast"))
    assert 1e-3 < error < 0.05
    assert without > gain * error
