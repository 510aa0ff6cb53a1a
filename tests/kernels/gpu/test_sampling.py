"""Tokens drawn on the device, against the cumulative distribution in float64, and against the engine's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lorafleet_kernels.gpu.sampling import Draws, TritonSampler
from lorafleet_runtime.engine.sampling.philox import uniforms
from lorafleet_runtime.engine.sampling.sampler import Row, sample
from lorafleet_runtime.protocol import Sampling

pytestmark = pytest.mark.interpreted

ALL = (0, 1.0)
"""No top-k and no top-p."""

Asked = tuple[float, float, tuple[int, float], float]
"""Temperature, min_p, (top_k, top_p), u."""


def draws(rows: list[Asked], device: torch.device) -> Draws:
    temperature, min_p, _, _ = zip(*rows, strict=True)
    top_k, top_p = zip(*(row[2] for row in rows), strict=True)
    inverse = torch.tensor([1 / t if t else 0.0 for t in temperature])
    exact = torch.tensor([row[3] for row in rows], dtype=torch.float64)
    ranks = torch.tensor(top_k, dtype=torch.int32)
    on = [part.to(device) for part in (inverse, torch.tensor(min_p), ranks, torch.tensor(top_p), exact)]
    return Draws(on[0], on[1], on[2], on[3], on[4], any(row[2] != ALL for row in rows))


def longhand(logits: torch.Tensor, temperature: float, min_p: float, keep: tuple[int, float], u: float) -> int:
    """By sorting, in float64; tokens equal to the last one kept are kept too."""
    values = logits.double().cpu().numpy()
    weights = np.exp((values - values.max()) / temperature)
    weights[weights < min_p] = 0
    best = np.sort(values)[::-1]
    if keep[0]:
        weights[values < best[min(keep[0], len(best)) - 1]] = 0
    if keep[1] < 1:
        above = np.array([weights[values > value].sum() for value in best])
        weights[values < best[above < keep[1] * weights.sum()].min()] = 0
    ends = weights.cumsum()
    return int((ends <= u * ends[-1]).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("columns", [50, 4096, 9001])
def test_the_token_is_the_one_at_which_the_running_sum_passes(
    columns: int, dtype: torch.dtype, device: torch.device
) -> None:
    logits = torch.randn(6, columns, generator=torch.Generator().manual_seed(2)).mul(3).to(dtype).to(device)
    asked = [
        (1.0, 0.0, ALL, 0.0), (0.7, 0.0, ALL, 0.31), (1.3, 0.05, ALL, 0.77), (1.0, 0.0, (7, 1.0), 0.5),
        (2.0, 0.01, (0, 0.6), 0.999), (0.0, 0.0, (3, 0.5), 0.9),
    ]  # fmt: skip
    sampler = TritonSampler(8, device, processors=2)

    tokens = sampler(logits, draws(asked, device)).tolist()

    assert tokens[:5] == [longhand(row, *what) for row, what in zip(logits, asked[:5], strict=False)]
    assert tokens[5] == int(logits[5].float().argmax())
    assert not sampler._arrived.any()


def test_it_draws_what_the_engine_draws(device: torch.device) -> None:
    logits = torch.randn(8, 5000, generator=torch.Generator().manual_seed(3)).mul(2)
    filters: list[dict[str, Any]] = [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 40, "top_p": 0.9}]
    settings = [
        Sampling(max_tokens=9, temperature=0.5 + i / 4, min_p=0.01 * i, seed=i, **filters[i % 4]) for i in range(8)
    ]
    rows = [Row(sampling, 7 * i, [], []) for i, sampling in enumerate(settings)]
    u = uniforms([row.sampling.seed for row in rows], [row.position for row in rows])
    asked = [
        (s.temperature, s.min_p, (max(s.top_k, 0), s.top_p), float(v)) for s, v in zip(settings, u, strict=True)
    ]

    tokens = TritonSampler(8, device, processors=2)(logits.to(device), draws(asked, device))

    expected = [sampled.token_id for sampled in sample(logits, rows)]
    assert tokens.tolist() == expected
    assert len(set(expected)) > 1


def test_a_filtered_token_is_never_drawn_however_u_is_rounded(device: torch.device) -> None:
    logits = torch.zeros(4, 8200, device=device)
    logits[:, 8190:] = -10.0
    logits[:, :3] = -10.0
    logits[2, 8195] = torch.nan
    logits[3] = -torch.inf
    last = float(np.nextafter(1.0, 0.0))
    asked = [(1.0, 0.1, ALL, 0.0), (1.0, 0.1, ALL, last), (1.0, 0.1, ALL, 0.5), (1.0, 0.1, ALL, 0.5)]

    tokens = TritonSampler(4, device, processors=2)(logits, draws(asked, device))

    assert tokens.tolist() == [3, 8189, -1, -1]


@pytest.mark.parametrize("columns", [40, 8192, 9001])
def test_ties_and_infinities_do_not_confuse_what_is_kept(columns: int, device: torch.device) -> None:
    """Of rounded logits many are equal to the last one that is kept, and some are forbidden."""
    logits = torch.randn(6, columns, generator=torch.Generator().manual_seed(8)).mul(2).round().to(device)
    logits[:, ::5] = -torch.inf
    asked: list[Asked] = [
        (1.0, 0.0, (3, 1.0), 0.4), (0.5, 0.0, (0, 0.3), 0.8), (1.0, 0.0, (columns + 9, 1.0), 0.6),
        (1.5, 0.2, (columns // 2, 0.8), 0.9), (1.0, 0.0, (1, 0.01), 0.999), (3.0, 0.0, (0, 0.999), 0.95),
    ]  # fmt: skip

    tokens = TritonSampler(6, device, processors=2)(logits, draws(asked, device)).tolist()

    assert tokens == [longhand(row, *what) for row, what in zip(logits, asked, strict=True)]
    assert not logits[range(6), tokens].isinf().any()


def test_a_vocabulary_beyond_the_kernels_is_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="600000 tokens"):
        TritonSampler(1, device, 1)(torch.zeros(1, 600_000, device=device), draws([(1.0, 0.0, ALL, 0.5)], device))
