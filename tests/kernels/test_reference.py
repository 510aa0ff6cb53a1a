"""The specification itself, against formulas written out longhand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lorafleet_kernels import reference as ops


def attention_longhand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, start: int) -> torch.Tensor:
    """`q [n, H, D]` at positions start.., `k, v [S, h, D]`: a loop over heads and rows."""
    out = torch.empty_like(q)
    group = q.shape[1] // k.shape[1]
    for row in range(q.shape[0]):
        seen = start + row + 1
        for head in range(q.shape[1]):
            scores = k[:seen, head // group] @ q[row, head] / q.shape[2] ** 0.5
            out[row, head] = scores.softmax(0) @ v[:seen, head // group]
    return out


def filled_pool(
    pages: int, heads: int, size: int, tables: list[list[int]], lengths: list[int]
) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    pool = torch.zeros(pages, 2, ops.PAGE_TOKENS, heads, size)
    sequences = []
    for table, length in zip(tables, lengths, strict=True):
        k, v = torch.randn(length, heads, size), torch.randn(length, heads, size)
        positions = torch.arange(length)
        ids = torch.tensor(table)[positions // ops.PAGE_TOKENS]
        ops.kv_write(pool, k, v, ops.kv_slots(ids, positions % ops.PAGE_TOKENS))
        sequences.append((k, v))
    return pool, sequences


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (8, 1)])
def test_decode_attends_over_each_rows_own_pages(heads: int, kv_heads: int) -> None:
    lengths, tables = [1, 16, 17, 40], [[5], [0], [3, 9], [7, 2, 8]]
    pool, sequences = filled_pool(10, kv_heads, 8, tables, lengths)
    q = torch.randn(4, heads, 8)
    bias = torch.zeros(4, 1, 1, 48)
    for row, length in enumerate(lengths):
        bias[row, ..., length:] = float("-inf")
    padded = torch.tensor([page for table in tables for page in table + [table[-1]] * (3 - len(table))])
    scratch = torch.full((2, 14, ops.PAGE_TOKENS, kv_heads, 8), float("nan"))

    out = ops.paged_decode(q, pool, ops.DecodeMeta(4, padded, bias), scratch)

    for row, (k, v) in enumerate(sequences):
        torch.testing.assert_close(out[row : row + 1], attention_longhand(q[row : row + 1], k, v, lengths[row] - 1))


@pytest.mark.parametrize("start", [0, 1, 15, 16, 21])
def test_a_prompt_chunk_attends_over_all_before_it_and_causally_over_itself(start: int) -> None:
    pool, [(k, v)] = filled_pool(6, 2, 8, [[4, 1, 5]], [start + 13])
    q = torch.randn(13, 4, 8)
    mask = None
    if start:
        mask = torch.arange(start + 13)[None, :] <= torch.arange(start, start + 13)[:, None]

    meta = ops.PrefillMeta(0, 13, start, torch.tensor([4, 1, 5])[: -(-(start + 13) // 16)], mask)
    out = ops.paged_prefill(q, k[start:], v[start:], pool, meta)

    torch.testing.assert_close(out, attention_longhand(q, k, v, start))


def test_rope_rotates_pairs_by_the_angle_of_their_position() -> None:
    x = torch.randn(5, 3, 8)
    angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.5, 0.25, 0.1]))
    both = torch.cat((angles, angles), -1).unsqueeze(1)

    out = ops.apply_rope(x, both.cos(), both.sin())

    as_complex = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
    torch.testing.assert_close(out, torch.cat((as_complex.real, as_complex.imag), -1))


def test_rms_norm_and_the_gated_activation_match_their_formulas() -> None:
    x, weight = torch.randn(3, 10), torch.randn(10)

    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), F.rms_norm(x, (10,), weight, 1e-5))
    torch.testing.assert_close(ops.silu_and_mul(x), x[:, :5] * torch.sigmoid(x[:, :5]) * x[:, 5:])


def lora_parts(ranks: tuple[int, ...], outs: tuple[int, ...], k: int) -> tuple[torch.Tensor, list[ops.LoraPart]]:
    a = torch.randn(sum(ranks), k)
    parts, column = [], 0
    for rank, out in zip(ranks, outs, strict=True):
        parts.append(ops.LoraPart(column, column + out, torch.randn(rank, out)))
        column += out
    return a, parts


def delta_longhand(x: torch.Tensor, a: torch.Tensor, parts: list[ops.LoraPart], width: int) -> torch.Tensor:
    delta = torch.zeros(x.shape[0], width)
    row = 0
    for part in parts:
        rank = part.b.shape[0]
        delta[:, part.begin : part.end] = x @ (part.b.t() @ a[row : row + rank]).t()
        row += rank
    return delta


@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 7, 3)])
def test_a_segment_gets_the_delta_of_each_projection(ranks: tuple[int, ...]) -> None:
    a, parts = lora_parts(ranks, (6, 2, 2), k=9)
    x, y = torch.randn(5, 9), torch.randn(5, 10)
    expected = y + delta_longhand(x, a, parts, 10)

    ops.lora_segment(y, x, a, parts)

    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("rows_of", [[[0, 1], [2, 3, 4]], [[1, 2], [5]]], ids=["adjacent", "scattered"])
def test_stacked_adapters_equal_their_segments(rows_of: list[list[int]]) -> None:
    adapters = [lora_parts((4, 2), (6, 5), k=9) for _ in rows_of]
    x, y = torch.randn(7, 9), torch.randn(7, 11)
    expected = y.clone()
    for rows, (a, parts) in zip(rows_of, adapters, strict=True):
        expected[rows] += delta_longhand(x[rows], a, parts, 11)
    group = ops.StackedGroup(
        torch.stack([a.t() for a, _ in adapters]),
        tuple(
            ops.StackedPart(p.begin, p.end, torch.stack([parts[i].b for _, parts in adapters]))
            for i, p in enumerate(adapters[0][1])
        ),
    )
    width = max(len(rows) for rows in rows_of)
    gather = torch.tensor([(rows + [0] * width)[i] for rows in rows_of for i in range(width)])
    back = torch.tensor([slot * width + i for slot, rows in enumerate(rows_of) for i in range(len(rows))])
    flat = [row for rows in rows_of for row in rows]
    adjacent = flat == list(range(flat[0], flat[-1] + 1))

    ops.lora_stacked(
        y,
        x,
        group,
        ops.StackedRows(len(rows_of), gather, back, flat[0], flat[-1] + 1, None if adjacent else torch.tensor(flat)),
    )

    torch.testing.assert_close(y, expected)
