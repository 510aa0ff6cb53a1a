"""Norms and activation of any width against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorafleet_kernels import reference
from lorafleet_kernels.gpu import elementwise
from tests.kernels.gpu.lora_kit import NOISE, TOLERANCE, TYPES

pytestmark = pytest.mark.interpreted

EPS = 1e-6


def poisoned(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random rows in a larger tensor of NaN."""
    around = torch.full((rows, columns + 9), float("nan"), dtype=dtype)
    around[:, :columns] = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    return around.to(device)[:, :columns]


def near(got: Tensor, expected: Tensor, steps: int) -> None:
    """Within `steps` roundings of the type, each of which the reference makes too."""
    allowed = steps * TOLERANCE[got.dtype] * expected.abs() + NOISE * expected.abs().max()
    worst = ((got.double().cpu() - expected).abs() / allowed).max().item()
    assert worst <= 1, f"{worst:.3g} times what {got.dtype} may be off"


@pytest.mark.parametrize("width", [1, 100, 1024, 1500, 4099])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_norm_of_any_width(width: int, dtype: torch.dtype, device: torch.device) -> None:
    x, weight = poisoned(3, width, dtype, device), poisoned(1, width, dtype, device)[0]

    out = elementwise.rms_norm(x, weight, EPS)

    near(out, reference.rms_norm(x.double().cpu(), weight.double().cpu(), EPS), 3)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_norm_of_heads_keeps_their_shape(dtype: torch.dtype, device: torch.device) -> None:
    x, weight = torch.randn(2, 3, 16).to(device, dtype), torch.randn(16).to(device, dtype)

    near(elementwise.rms_norm(x, weight, EPS), reference.rms_norm(x.double().cpu(), weight.double().cpu(), EPS), 3)


@pytest.mark.parametrize("width", [1, 100, 4099])
@pytest.mark.parametrize("dtype", TYPES)
def test_an_addition_in_place_and_its_norm(width: int, dtype: torch.dtype, device: torch.device) -> None:
    x, y, weight = (poisoned(2, width, dtype, device) for _ in range(3))
    y = y.flip(0)
    total = x.double().cpu() + y.double().cpu()

    out = elementwise.add_rms_norm(x, y, weight[0], EPS)

    near(x, total, 1)
    near(out, reference.rms_norm(x.double().cpu(), weight[0].double().cpu(), EPS), 3)


@pytest.mark.parametrize("width", [1, 100, 1030])
@pytest.mark.parametrize("dtype", TYPES)
def test_silu_and_mul_of_any_width(width: int, dtype: torch.dtype, device: torch.device) -> None:
    x = 3 * poisoned(2, 2 * width, dtype, device)

    near(elementwise.silu_and_mul(x), reference.silu_and_mul(x.double().cpu()), 2)


def test_silu_of_numbers_far_from_zero_is_no_nan(device: torch.device) -> None:
    x = torch.tensor([[-1e4, 1e4, -200.0, 2.0, 2.0, 2.0]], device=device)

    assert elementwise.silu_and_mul(x).tolist() == [[0.0, 2e4, 0.0]]


@pytest.mark.parametrize("dtype", TYPES)
def test_the_tolerance_notices_a_norm_without_its_eps(dtype: torch.dtype, device: torch.device) -> None:
    x, weight = poisoned(2, 64, dtype, device), poisoned(1, 64, dtype, device)[0]

    with pytest.raises(AssertionError, match="times what"):
        near(elementwise.rms_norm(x, weight, 0.0), reference.rms_norm(x.double().cpu(), weight.double().cpu(), 0.1), 3)


def test_empty_batches_are_served(device: torch.device) -> None:
    nothing = torch.empty(0, 8, device=device)

    assert elementwise.rms_norm(nothing, nothing.new_ones(8), EPS).shape == (0, 8)
    assert elementwise.add_rms_norm(nothing, nothing, nothing.new_ones(8), EPS).shape == (0, 8)
    assert elementwise.silu_and_mul(nothing).shape == (0, 4)
