"""Norms and the activation of a step without adapters, on a GPU: `reference.py` says what they compute. `dependent` as
`launch.in_step` takes it."""

from __future__ import annotations

import torch
from torch import Tensor

from lorafleet_kernels.gpu.kernels import activation, norm
from lorafleet_kernels.gpu.launch import in_step


def rms_norm(x: Tensor, weight: Tensor, eps: float, dependent: bool = False) -> Tensor:
    """`x / rms(x) · weight` of `x [..., H]`, whose last dimension is contiguous, in a new tensor."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows)
    if len(rows):
        norm.rms_norm[(len(rows),)](
            out, rows, weight, out.stride(0), rows.stride(0), rows.shape[1], eps,
            BLOCK=norm_block(rows.shape[1]), num_warps=norm.WARPS, **in_step(dependent),
        )  # fmt: skip
    return out.view(x.shape)


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float, dependent: bool = False) -> Tensor:
    """`x += y` in place, then its `rms_norm`. `x, y [T, H]`."""
    out = torch.empty_like(x)
    if len(x):
        norm.add_rms_norm[(len(x),)](
            out, x, y, weight, out.stride(0), x.stride(0), y.stride(0), x.shape[1], eps,
            BLOCK=norm_block(x.shape[1]), num_warps=norm.WARPS, **in_step(dependent),
        )  # fmt: skip
    return out


def silu_and_mul(x: Tensor, dependent: bool = False) -> Tensor:
    """`silu(gate) · up` of `x [T, 2·I]` = gate, up → `[T, I]`."""
    width = x.shape[1] // 2
    out = x.new_empty(len(x), width)
    if len(x):
        activation.silu_and_mul[(len(x), -(-width // activation.BLOCK))](
            out, x, out.stride(0), x.stride(0), width,
            BLOCK_N=activation.BLOCK, num_warps=activation.WARPS, **in_step(dependent),
        )  # fmt: skip
    return out


def norm_block(width: int) -> int:
    """Columns at a time: the whole row, where it is no longer than the largest block."""
    return next((block for block in norm.BLOCKS if block >= width), norm.BLOCKS[-1])
