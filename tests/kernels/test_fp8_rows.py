"""Rows as e4m3: how far off they may be, and that nothing else is lost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_kernels.fp8_rows import ABSOLUTE, LARGEST, RELATIVE, dequantise, quantise


@given(st.integers(0, 10_000), st.integers(-70, 40), st.integers(-12, 12), st.sampled_from([1, 7, 64]))
def test_every_element_is_within_the_formats_error_of_its_row(seed: int, size: int, spread: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-abs(spread), 1, (3, width), generator=generator).float()
    rows = torch.randn(3, width, generator=generator) * torch.exp2(exponents) * 2.0**size

    codes, scales = quantise(rows)

    allowed = torch.maximum(RELATIVE * rows.abs(), ABSOLUTE * scales[:, None])
    error = (dequantise(codes, scales) - rows).abs()
    assert bool((error <= allowed).all())
    assert torch.equal(torch.frexp(scales)[0], torch.full((3,), 0.5)), "scales are powers of two"
    largest = rows.abs().amax(1) / scales
    assert bool((largest <= LARGEST).all())
    assert bool(((largest > LARGEST / 2) | (scales == 2.0**-60)).all()), "no smaller scale would do"


def test_the_bound_is_no_looser_than_the_format() -> None:
    rows = torch.linspace(-1, 1, 4001)[None]
    codes, scales = quantise(rows)
    error = (dequantise(codes, scales) - rows).abs() / torch.maximum(RELATIVE * rows.abs(), ABSOLUTE * scales[:, None])

    assert float(error.max()) > 0.9


@given(st.integers(0, 10_000))
def test_what_is_quantised_already_stays(seed: int) -> None:
    rows = torch.randn(4, 33, generator=torch.Generator().manual_seed(seed))
    once = dequantise(*quantise(rows))

    assert torch.equal(dequantise(*quantise(once)), once)


def test_every_code_but_nan_is_a_number_of_its_own() -> None:
    codes = torch.tensor([[code for code in range(256) if code & 0x7F != 0x7F]], dtype=torch.uint8)
    rows = dequantise(codes, torch.tensor([0.25]))

    again, scales = quantise(rows)

    assert torch.equal(again, codes)
    assert scales.tolist() == [0.25]


def test_a_row_of_zeros_is_one() -> None:
    codes, scales = quantise(torch.zeros(2, 5))

    assert codes.tolist() == [[0] * 5] * 2
    assert scales.tolist() == [1, 1]


def test_numbers_beyond_every_scale_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1e\+20 is above 4\.92581e\+14, the most that fp8 holds"):
        quantise(torch.tensor([[1.0], [1e20]]))
