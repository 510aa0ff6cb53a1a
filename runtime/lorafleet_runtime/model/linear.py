"""A base-weight product, in whichever form this machine multiplies fastest."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

CHECK_ROWS = (1, 8, 32)
"""Row counts of decode steps at which plain and prepacked weights are compared; prompts gain nothing from packing."""


class Linear:
    """`x [T, K] -> [T, O]`, with the bias if there is one. `weight` is `[O, K]` until it is packed."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.shape = tuple(weight.shape)
        self.weight = weight
        self._bias = bias
        self._packed = False

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed:
            return prepacked_linear(x, self.weight, self._bias)
        return F.linear(x, self.weight, self._bias)

    def pack(self) -> None:
        """Replace the weight by oneDNN's blocked form of it; the plain one is dropped."""
        self.weight = prepack(self.weight, max(CHECK_ROWS))
        self._packed = True


def prepack(weight: Tensor, rows: int) -> Tensor:
    """oneDNN's blocked layout for products with about `rows` rows. Private API of torch, as torch's own compiler
    uses it when it freezes a model."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return packed


def prepacked_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y


def packing_pays(weight: Tensor, *, repeats: int = 3) -> bool:
    """Measure plain against prepacked products at decode sizes on this machine, now, with the threads that are set."""
    packed = prepack(weight, max(CHECK_ROWS))
    plain_total = packed_total = 0.0
    for rows in CHECK_ROWS:
        x = torch.ones(rows, weight.shape[1], dtype=weight.dtype)
        plain_total += _fastest(partial(F.linear, x, weight), repeats)
        packed_total += _fastest(partial(prepacked_linear, x, packed, None), repeats)
    return packed_total < 0.95 * plain_total


def _fastest(call: Callable[[], Tensor], repeats: int) -> float:
    call()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
