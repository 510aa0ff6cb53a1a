"""A row's delta for whatever block of columns a kernel asks for: heads of sizes that no grain divides, too."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from lorafleet_kernels.gpu.forms.lora import Variant
from lorafleet_kernels.gpu.kernels.lora_delta import slice_delta
from tests.kernels.gpu.lora_kit import LAYER, ODD, USUAL, close, make

pytestmark = pytest.mark.interpreted

RANKS = ({"q_proj": 3, "v_proj": 18}, {"k_proj": 1})


@triton.jit  # type: ignore[untyped-decorator]
def heads_of_v(  # type: ignore[no-untyped-def]
    out, planes, pool, row_adapters, adapters, pages, layouts,
    plane_stride, planes_width, layout_stride, splits, width,
    SIZE: tl.constexpr, PAGE: tl.constexpr, GRAIN: tl.constexpr, BLOCK_N: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Grid (rows, heads)."""
    row, first = tl.program_id(0), tl.program_id(1) * SIZE
    delta = slice_delta(
        planes, pool, adapters, pages, layouts, plane_stride, planes_width, layout_stride, splits,
        row, tl.load(row_adapters + row), first, width, 2, PAGE, GRAIN, BLOCK_N, 16, ALIGNED,
    )  # fmt: skip
    column = tl.arange(0, BLOCK_N)
    tl.store(out + row * width + first + column, delta, mask=(column < SIZE) & (first + column < width))


@pytest.mark.parametrize(
    ("odd", "size", "block", "aligned"),
    [
        (False, 128, 128, True),
        (False, 32, 32, True),
        (False, 48, 64, False),
        (True, 20, 32, False),
        (True, 7, 8, False),
    ],
)
def test_a_block_of_columns_has_the_delta_of_its_columns(
    odd: bool, size: int, block: int, aligned: bool, device: torch.device
) -> None:
    config = ODD if odd else USUAL
    case = make(RANKS, ((0, 1, 0), (1, 2, -1), (2, 3, 1), (3, 4, 0)), torch.float32, device, rows=4, config=config,
                variant=Variant.ROWS)  # fmt: skip
    x = case.inputs(4, config.hidden_size)
    case.step.shrink(LAYER, "qkv", x)
    pool, planes, rows, *tables = case.step.tables(LAYER, "qkv", case.step.batch.row_adapters)
    out = torch.full((4, config.kv_dim), float("nan"), device=device)

    heads_of_v[(4, -(-config.kv_dim // size))](
        out, planes, pool, rows, *tables, *case.step.counts("qkv", 4), config.kv_dim,
        SIZE=size, PAGE=pool.shape[1], GRAIN=case.step.batch.grain, BLOCK_N=block, ALIGNED=aligned,
    )  # fmt: skip

    y = torch.zeros(4, config.q_dim + 2 * config.kv_dim)
    close(out, case.expected("qkv", x, y)[:, -config.kv_dim :])
