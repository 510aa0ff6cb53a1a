"""What kernels that take in an expand compute, in plain torch: the specification of `gpu/kernels/{activation,norm}.py`.

They round where the separate operations do, so that a step may use either. Segments: rows `begin .. end` with one
adapter's matrices for the group, as `reference.lora_segment` takes them; other rows are the base model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lorafleet_kernels import reference
from lorafleet_kernels.reference import LoraPart


@dataclass(frozen=True, slots=True)
class AdaptedRows:
    """Rows `begin .. end` of a batch, and their adapter's `a [ΣR, K]` and parts."""

    begin: int
    end: int
    a: Tensor
    parts: Sequence[LoraPart]


def lora_rows(y: Tensor, x: Tensor, segments: Sequence[AdaptedRows]) -> None:
    """`y [T, O]` += the deltas of the rows of `x [T, K]`, in place."""
    for s in segments:
        reference.lora_segment(y[s.begin : s.end], x[s.begin : s.end], s.a, s.parts)


def lora_silu_and_mul(gate_up: Tensor, x: Tensor, segments: Sequence[AdaptedRows]) -> Tensor:
    """`silu(gate + its delta) · (up + its delta)` → `[T, I]`, of `gate_up [T, 2·I]`, which stays, and its input `x`."""
    adapted = gate_up.clone()
    lora_rows(adapted, x, segments)
    return reference.silu_and_mul(adapted)


def lora_add_rms_norm(
    residual: Tensor, y: Tensor, x: Tensor, segments: Sequence[AdaptedRows], weight: Tensor, eps: float
) -> Tensor:
    """`residual += y + delta` in place, then its norm. `residual, y [T, H]`; x: the input of the layer that gave y."""
    adapted = y.clone()
    lora_rows(adapted, x, segments)
    return reference.add_rms_norm(residual, adapted, weight, eps)
