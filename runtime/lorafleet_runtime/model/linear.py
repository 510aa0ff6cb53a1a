"""A base-weight product, in whichever form this machine multiplies fastest."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from lorafleet_runtime.model.threads import on_all_threads

CHECK_ROWS = (1, 8, 32)
"""Row counts of decode steps at which the forms are compared; prompts gain little from any of them."""
CACHE_BYTES = 32 * 2**20
"""Read between two measurements: in a step, every weight comes from memory."""


class Form(Enum):
    """How `y = x Wᵀ + b` is computed."""

    PLAIN = "plain"
    SWAPPED = "swapped"
    """As `(W xᵀ)ᵀ`: libraries split the larger left side better over threads."""
    PACKED = "packed"
    """With the weight in oneDNN's blocked layout, which replaces the plain one."""


class Linear:
    """`x [T, K] -> [T, O]`, with the bias if there is one. `weight` is `[O, K]` until it is packed."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.shape = tuple(weight.shape)
        self.weight = weight
        self.bias = bias
        self._form = Form.PLAIN

    @on_all_threads
    def __call__(self, x: Tensor) -> Tensor:
        return multiply(self._form, x, self.weight, self.bias)

    def plain(self) -> Tensor:
        """The weight as `[O, K]`, a copy where it is packed."""
        return self.weight.to_dense() if self.weight.is_mkldnn else self.weight

    def use(self, form: Form) -> None:
        """Change a plain product to `form`."""
        if form is Form.PACKED:
            self.weight = prepack(self.weight, max(CHECK_ROWS))
        self._form = form


def multiply(form: Form, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (rows, in) times a weight that is stored in `form`: (rows, out)."""
    if form is Form.PACKED:
        return prepacked_linear(x, weight, bias)
    if form is Form.SWAPPED:
        y = torch.mm(weight, x.t()).t()
        return y.contiguous() if bias is None else y + bias
    return F.linear(x, weight, bias)


def prepack(weight: Tensor, rows: int) -> Tensor:
    """oneDNN's blocked layout for products with about `rows` rows. Private API of torch, as torch's own compiler
    uses it when it freezes a model."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return packed


def prepacked_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """x (rows, in) times a weight that oneDNN has reordered: (rows, out)."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y


@on_all_threads
def fastest_form(weight: Tensor, allowed: tuple[Form, ...], *, repeats: int = 5) -> Form:
    """Measure the allowed forms in turn at decode sizes, on this machine, now. The first allowed one wins ties."""
    weights = {form: prepack(weight, max(CHECK_ROWS)) if form is Form.PACKED else weight for form in allowed}
    inputs = [torch.ones(rows, weight.shape[1], dtype=weight.dtype) for rows in CHECK_ROWS]
    evict = torch.ones(CACHE_BYTES // 8, dtype=torch.float64)
    fastest = {(form, rows): float("inf") for form in allowed for rows in CHECK_ROWS}
    for _ in range(repeats):
        for form in allowed:
            for x in inputs:
                evict.sum()
                seconds = _seconds(lambda x=x, form=form: multiply(form, x, weights[form], None))  # type: ignore[misc]
                fastest[form, len(x)] = min(fastest[form, len(x)], seconds)
    totals = {form: sum(fastest[form, rows] for rows in CHECK_ROWS) for form in allowed}
    best = min(allowed, key=totals.__getitem__)
    return best if totals[best] < 0.95 * totals[allowed[0]] else allowed[0]


def _seconds(call: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
