"""The device's side of a step: one buffer of int32, and the parts of it that the kernels read."""

from __future__ import annotations

import math

from torch import Tensor

from lorafleet_kernels.gpu.lora.batch import LoraBatch
from lorafleet_kernels.gpu.lora.host import StepSizes


def batch_in(buffer: Tensor, sizes: StepSizes, layouts: Tensor, grain: int) -> LoraBatch:
    """The parts of `buffer [sizes.total]`, as views: what is copied into it later, kernels and captured graphs see.

    `layouts [L, layers, groups, DESCRIPTION]` stay on the device from step to step.
    """
    parts = {}
    for name, (begin, shape) in sizes.places.items():
        parts[name] = buffer[begin : begin + math.prod(shape)].view(shape)
    return LoraBatch(layouts=layouts, grain=grain, **parts)
