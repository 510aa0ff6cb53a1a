"""Chooses who computes an operation: on a CPU the native library where it could be made and passes its test, on a GPU
Triton's kernels where Triton is installed, else the reference.

The only place that knows of all. `LORAFLEET_KERNELS=reference` keeps to the reference, on a CPU `LORAFLEET_NATIVE=0`
does too; `LORAFLEET_KERNELS=triton` insists on Triton's. With `LORAFLEET_DEPENDENT_LAUNCHES=1` these start before those
ahead of them have ended (docs/gpu.md), which nobody has measured yet.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import lru_cache

import torch

from lorafleet_kernels.build import CannotBuild
from lorafleet_kernels.native import Native
from lorafleet_kernels.native_check import first_difference
from lorafleet_kernels.operations import Operations

log = logging.getLogger("lorafleet.kernels")

CHOICES = ("", "reference", "triton")
"""Of LORAFLEET_KERNELS."""
DEPENDENT_LAUNCHES = "LORAFLEET_DEPENDENT_LAUNCHES"


def operations(dtype: torch.dtype, device: torch.device, threads: Callable[[], int]) -> Operations:
    """What is fastest here. `threads` says how many threads an operation may use, whenever it is called.

    Raises ValueError where LORAFLEET_KERNELS or LORAFLEET_DEPENDENT_LAUNCHES asks for what is not there."""
    asked = os.environ.get("LORAFLEET_KERNELS", "")
    if asked not in CHOICES:
        raise ValueError(f"LORAFLEET_KERNELS={asked} is unknown: write {', '.join(filter(None, CHOICES))} or nothing")
    if asked == "triton" or (device.type == "cuda" and not asked):
        found = _triton(dtype, device, insists=asked == "triton")
        if found is not None:
            return found
    if _dependent():
        raise ValueError(f"{DEPENDENT_LAUNCHES}=1: only Triton's kernels on a GPU launch dependents: unset it")
    wanted = asked != "reference" and os.environ.get("LORAFLEET_NATIVE") != "0" and device.type == "cpu"
    return Operations(_native(dtype, threads) if wanted and dtype in (torch.float32, torch.bfloat16) else None)


def _triton(dtype: torch.dtype, device: torch.device, *, insists: bool) -> Operations | None:
    """Imported where it is used: Triton takes a second, and is not there on every system."""
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("LORAFLEET_KERNELS=triton on a CPU runs in Triton's interpreter only: set TRITON_INTERPRET=1")
    try:
        from lorafleet_kernels.gpu.operations import TritonOperations
        from lorafleet_kernels.gpu.triton_driver import use_what_is_there

        if device.type == "cuda":
            use_what_is_there()
    except ImportError as error:
        if insists:
            raise ValueError(f"LORAFLEET_KERNELS=triton, and Triton cannot be used: {error}") from error
        log.warning("plain torch computes on this GPU, several times slower: Triton cannot be used: %s", error)
        return None
    return TritonOperations(dtype, device, _dependent())


def _dependent() -> bool:
    asked = os.environ.get(DEPENDENT_LAUNCHES, "")
    if asked not in ("", "0", "1"):
        raise ValueError(f"{DEPENDENT_LAUNCHES}={asked} is unknown: write 1, 0 or nothing")
    return asked == "1"


@lru_cache
def _native(dtype: torch.dtype, threads: Callable[[], int]) -> Native | None:
    """Loaded and checked once per process. Where there is none, one log line says why."""
    try:
        native = Native(dtype, threads)
        reason = first_difference(native, dtype)
    except CannotBuild as error:
        reason = str(error)
    if not reason:
        return native
    log.warning("plain torch computes on this CPU, at about half the speed: %s", reason)
    return None
