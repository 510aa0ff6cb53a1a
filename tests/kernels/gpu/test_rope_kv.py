"""Rotation and the write to the pages, in one launch, against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from lorafleet_kernels.batch import HeadSizes
from tests.kernels.gpu.attention_twin import DTYPES, LAYER, TOLERANCES, Case, a_case, rotated, worst

pytestmark = pytest.mark.interpreted


def run(case: Case, pool: torch.Tensor) -> torch.Tensor:
    """Rotates a copy of the case's qkv, which it returns, and writes to `pool`."""
    qkv = case.qkv.clone()
    q_norm, k_norm = case.norms
    case.attention(pool)._rotate_and_write(LAYER, qkv, q_norm, k_norm, None)
    return qkv


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("sizes", "norms"),
    [
        (HeadSizes(4, 2, 64, 1e-6), False),
        (HeadSizes(3, 1, 80, 1e-6), True),
        (HeadSizes(9, 3, 128, 1e-5), True),
        (HeadSizes(2, 2, 6, 1e-5), False),
    ],
)
def test_queries_turn_in_place_and_keys_and_values_go_to_their_pages(
    dtype: torch.dtype, sizes: HeadSizes, norms: bool, device: torch.device
) -> None:
    case = a_case(dtype, sizes, [1, 16, 17], [(0, 3), (30, 4)], device, norms)
    pool = case.pool.clone()

    qkv = run(case, pool)

    q, k, v = rotated(case)
    assert worst(qkv.view(len(qkv), -1, sizes.size)[:, : sizes.heads], q) < TOLERANCES[dtype]
    row = 0
    for count, pages in zip(case.batch.counts, case.batch.pages, strict=True):
        for position in case.batch.positions[row : row + count]:
            written = pool[LAYER, pages[position // 16], :, position % 16]
            assert worst(written[0], k[row]) < TOLERANCES[dtype]
            assert torch.equal(written[1].double(), v[row])
            pool[LAYER, pages[position // 16], :, position % 16] = torch.nan
            row += 1
    assert torch.equal(pool.nan_to_num(7), case.pool.nan_to_num(7)), "something else of the pool was written"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_position_off_by_one_and_a_norm_left_out_are_noticed(dtype: torch.dtype, device: torch.device) -> None:
    case = a_case(dtype, HeadSizes(4, 2, 64, 1e-6), [3], [], device, norms=True)
    qkv = run(case, case.pool.clone())
    queries = qkv.view(1, -1, 64)[:, :4]
    later = Case(case.batch, case.sizes, case.pool, case.qkv, (case.tables[0].roll(1, 0), case.tables[1]), case.norms)
    plain = Case(case.batch, case.sizes, case.pool, case.qkv, case.tables, (None, None))

    assert worst(queries, rotated(later)[0]) > 2 * TOLERANCES[dtype]
    assert worst(queries, rotated(plain)[0]) > 2 * TOLERANCES[dtype]


def test_the_pool_may_lie_in_another_order(device: torch.device) -> None:
    case = a_case(torch.float32, HeadSizes(4, 2, 64, 1e-6), [5, 17], [], device)
    expected, by_heads = case.pool.clone(), case.pool.transpose(3, 4).contiguous().transpose(3, 4)

    run(case, expected)
    run(case, by_heads)

    assert by_heads.stride() != expected.stride()
    assert torch.equal(by_heads.nan_to_num(7), expected.nan_to_num(7))
