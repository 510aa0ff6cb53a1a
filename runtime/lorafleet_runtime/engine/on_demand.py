"""Memory that is taken only where it is touched."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor


def zeros_on_demand(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros, straight from the operating system; given back to it when the last view is gone.

    Attention masks what a page does not hold yet, but 0 · NaN is NaN: a page must never hold what memory held before.
    """
    return torch.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype=dtype).view(shape)
