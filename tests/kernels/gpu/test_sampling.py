"""Tokens drawn on the device, against the cumulative distribution in float64, and against the engine's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorafleet_kernels.gpu.sampling import Draws, TritonSampler
from lorafleet_runtime.engine.sampling.philox import uniforms
from lorafleet_runtime.engine.sampling.sampler import Row, sample
from lorafleet_runtime.protocol import Sampling

pytestmark = pytest.mark.interpreted

ALL = -torch.inf


def draws(rows: list[tuple[float, float, float, float]], device: torch.device) -> Draws:
    """Of (temperature, min_p, cutoff, u) each."""
    temperature, min_p, cutoff, _ = (torch.tensor(column) for column in zip(*rows, strict=True))
    inverse = torch.where(temperature > 0, 1 / temperature, 0)
    exact = torch.tensor([row[3] for row in rows], dtype=torch.float64)
    return Draws(inverse.to(device), min_p.to(device), cutoff.to(device), exact.to(device))


def longhand(logits: torch.Tensor, temperature: float, min_p: float, cutoff: float, u: float) -> int:
    values = logits.double().cpu().numpy()
    weights = np.exp((values - values.max()) / temperature)
    weights[(weights < min_p) | (values < cutoff)] = 0
    ends = weights.cumsum()
    return int((ends <= u * ends[-1]).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("columns", [50, 4096, 9001])
def test_the_token_is_the_one_at_which_the_running_sum_passes(
    columns: int, dtype: torch.dtype, device: torch.device
) -> None:
    logits = torch.randn(6, columns, generator=torch.Generator().manual_seed(2)).mul(3).to(dtype).to(device)
    asked = [
        (1.0, 0.0, ALL, 0.0), (0.7, 0.0, ALL, 0.31), (1.3, 0.05, ALL, 0.77), (1.0, 0.0, 2.5, 0.5),
        (2.0, 0.01, 1.0, 0.999), (0.0, 0.0, ALL, 0.9),
    ]  # fmt: skip
    sampler = TritonSampler(8, device, processors=2)

    tokens = sampler(logits, draws(asked, device)).tolist()

    assert tokens[:5] == [longhand(row, *what) for row, what in zip(logits, asked[:5], strict=False)]
    assert tokens[5] == int(logits[5].float().argmax())
    assert not sampler._arrived.any()


def test_it_draws_what_the_engine_draws(device: torch.device) -> None:
    logits = torch.randn(8, 5000, generator=torch.Generator().manual_seed(3)).mul(2)
    settings = [Sampling(max_tokens=9, temperature=0.5 + i / 4, min_p=0.01 * i, seed=i) for i in range(8)]
    rows = [Row(sampling, 7 * i, [], []) for i, sampling in enumerate(settings)]
    u = uniforms([row.sampling.seed for row in rows], [row.position for row in rows])
    asked = [(r.sampling.temperature, r.sampling.min_p, ALL, float(v)) for r, v in zip(rows, u, strict=True)]

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


def test_a_vocabulary_beyond_the_kernels_is_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="600000 tokens"):
        TritonSampler(1, device, 1)(torch.zeros(1, 600_000, device=device), draws([(1.0, 0.0, ALL, 0.5)], device))
