"""Rows of float32 as e4m3 (FP8 Formats for Deep Learning, arXiv 2209.05433, section 3) with a scale each: the
specification of adapters in fp8. Kernels compute `reference.lora_segment` of the dequantised rows.

Scales are powers of two. That costs none of the format's 4 significant bits, and everything that is made of the codes
in float32 is the same, bit for bit, as of the dequantised numbers."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 448.0
"""The largest number of e4m3."""
EXPONENTS = -60, 40
"""Of scales: the product of two, and that of 2¹⁶ and two, are normal numbers of float32. A row whose numbers are all
below 2⁻⁵¹ loses bits of them."""
RELATIVE, ABSOLUTE = 2.0**-4, 2.0**-10
"""An element is off by at most its `RELATIVE` part, or, where it is small, by `ABSOLUTE` of the row's scale."""


def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`rows [R, N]` float32 → codes `[R, N]` uint8, and scales `[R]` float32: the least powers of two for which no
    element is out of range.

    Raises ValueError for numbers that no scale brings into range, which are above 2⁴⁸.
    """
    largest = rows.abs().amax(dim=1)
    mantissa, exponent = torch.frexp(largest / LARGEST)
    exponent = (exponent - (mantissa == 0.5).int()).clamp(min=EXPONENTS[0])
    if not bool((exponent <= EXPONENTS[1]).all()):
        most = LARGEST * 2.0 ** EXPONENTS[1]
        raise ValueError(f"{float(largest.max()):g} is above {most:g}, the most that fp8 holds")
    scales = torch.ldexp(torch.ones_like(largest), exponent)
    return (rows / scales[:, None]).to(torch.float8_e4m3fn).view(torch.uint8), scales


def dequantise(codes: Tensor, scales: Tensor) -> Tensor:
    """`codes [R, N]` uint8, `scales [R]` → float32 `[R, N]`."""
    return codes.view(torch.float8_e4m3fn).float() * scales[:, None]
