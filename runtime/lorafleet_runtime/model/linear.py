"""A base-weight product, in whichever form this machine multiplies fastest."""

from __future__ import annotations

import time
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from lorafleet_kernels.operations import Operations
from lorafleet_runtime.model.threads import on_all_threads

CHECK_ROWS = (1, 8, 32)
"""Row counts of decode steps at which the forms are compared; prompts gain little from any of them."""
CACHE_BYTES = 32 * 2**20
"""Read between two measurements, unless a step reads less: then weights stay in the cache from one to the next."""


class Form(Enum):
    """How `y = x Wᵀ + b` is computed."""

    PLAIN = "plain"
    SWAPPED = "swapped"
    """As `(W xᵀ)ᵀ`: libraries split the larger left side better over threads."""
    PACKED = "packed"
    """With the weight in oneDNN's blocked layout, which replaces the plain one."""
    TILES = "tiles"
    """On matrix tiles, with the weight in their layout, which replaces the plain one."""
    TILES_PLAIN = "tiles, plain weight"
    """On matrix tiles, with the weight as it lies; for few rows."""


class Linear:
    """`x [T, K] -> [T, O]`, with the bias if there is one. `weight` is `[O, K]` until a form lays it out anew."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.shape = tuple(weight.shape)
        self.weight = weight
        self.bias = bias
        self._form = Form.PLAIN
        self._ops: Operations | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self._ops is not None and self._form is Form.TILES:
            return self._ops.multiply(x, self.weight, self.shape[0], self.bias)
        return multiply(self._form, x, self.weight, self.bias, self.shape[0], self._ops)

    @property
    def turned(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias as the tiles read them; None in another form."""
        return (self.weight, self.bias) if self._form is Form.TILES else None

    def plain(self) -> Tensor:
        """The weight as `[O, K]`, a copy where it is laid out otherwise."""
        if self._ops is not None and self._form is Form.TILES:
            return self._ops.turn_back(self.weight, self.shape)
        return self.weight.to_dense() if self.weight.is_mkldnn else self.weight

    def use(self, form: Form, ops: Operations | None = None) -> None:
        """Change a plain product to `form`, which for tiles needs the operations that offered it."""
        self.weight = laid_out(form, self.weight, ops)
        self._form = form
        self._ops = ops


def forms(weight: Tensor, ops: Operations, *, keeping: bool) -> tuple[Form, ...]:
    """What this machine has for a weight; with `keeping`, only what leaves the weight as it lies."""
    on_torch = (Form.PLAIN, Form.SWAPPED) if keeping else (Form.PLAIN, Form.SWAPPED, Form.PACKED)
    if not ops.tiles_fit(weight):
        return on_torch
    return (*on_torch, Form.TILES_PLAIN if keeping else Form.TILES)


def laid_out(form: Form, weight: Tensor, ops: Operations | None) -> Tensor:
    """The weight as `form` reads it."""
    if form is Form.PACKED:
        return prepack(weight, max(CHECK_ROWS))
    if form is Form.TILES and ops is not None:
        return ops.turn(weight)
    return weight


@on_all_threads
def multiply(
    form: Form, x: Tensor, weight: Tensor, bias: Tensor | None, outputs: int = 0, ops: Operations | None = None
) -> Tensor:
    """`x [T, K]` times a weight that `laid_out` gave: `[T, O]`. Tiles need to be told `outputs`, and by which `ops`."""
    if ops is not None and form is Form.TILES:
        return ops.multiply(x, weight, outputs, bias)
    if ops is not None and form is Form.TILES_PLAIN:
        return ops.multiply_plain(x, weight, bias)
    if form is Form.PACKED:
        return prepacked_linear(x, weight, bias)
    if form is Form.SWAPPED:
        y = torch.mm(weight, x.t()).t()
        return (y if bias is None else y + bias).contiguous()
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


def fastest_form(
    weight: Tensor, allowed: tuple[Form, ...], ops: Operations, *, step_bytes: int = CACHE_BYTES, repeats: int = 5
) -> Form:
    """Measure the allowed forms in turn at decode sizes, on this machine, now. The first allowed one wins ties.

    A step reads `step_bytes` of weights."""
    weights = {form: laid_out(form, weight, ops) for form in allowed}
    inputs = [torch.ones(rows, weight.shape[1], dtype=weight.dtype) for rows in CHECK_ROWS]
    evict = torch.ones(min(step_bytes, CACHE_BYTES) // 8, dtype=torch.float64)
    fastest = {(form, rows): float("inf") for form in allowed for rows in CHECK_ROWS}
    for _ in range(repeats):
        for form, laid in weights.items():
            for x in inputs:
                evict.sum()
                start = time.perf_counter()
                multiply(form, x, laid, None, weight.shape[0], ops)
                fastest[form, len(x)] = min(fastest[form, len(x)], time.perf_counter() - start)
    totals = {form: sum(fastest[form, rows] for rows in CHECK_ROWS) for form in allowed}
    best = min(allowed, key=totals.__getitem__)
    return best if totals[best] < 0.95 * totals[allowed[0]] else allowed[0]
