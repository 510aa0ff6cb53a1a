"""What is measured on: a CUDA device and how it is timed, as the tuner does. Nothing here runs without one."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import torch

from bench.record import Result
from lorafleet_kernels.gpu.tuning.about import driver_version
from lorafleet_kernels.gpu.tuning.clock import REPEATS, elapsed, replayed

DEFAULT_L2 = 64 << 20


class Timer(Protocol):
    def __call__(self, run: Callable[[], None], calls: int, /) -> float:
        """Seconds of one of the `calls` that `run` makes."""
        ...


@dataclass(frozen=True, slots=True)
class Device:
    """`cache`: bytes of L2; `memory`: bytes that are free; `bandwidth`: bytes a second that a copy reads and writes,
    measured; `time`: how to time on it."""

    device: torch.device
    name: str
    driver: str
    cache: int
    memory: int
    bandwidth: float
    time: Timer


def result(
    case: str, metric: str, value: float, unit: str, baseline: float | None = None, ratio: float | None = None,
    goal: str = "", met: bool | None = None, repeats: int = REPEATS,
) -> Result:  # fmt: skip
    """One of this bench: of a time, the median of its repeats."""
    return Result("kernels", case, metric, value, unit, baseline, ratio, goal, met, repeats)


class Clock:
    """When a section has to end. Virtual time in tests."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._end = now, now() + seconds

    @property
    def over(self) -> bool:
        return self._now() >= self._end


def eager(run: Callable[[], None], calls: int) -> float:
    """The same without a graph: what the host needs to launch counts."""
    run()
    return median(elapsed(run, 1) for _ in range(REPEATS)) / calls


def copy_bandwidth(cache: int, device: torch.device) -> float:
    """Bytes a second that `copy_` reads and writes, of buffers far larger than the cache."""
    free, _ = torch.cuda.mem_get_info(device)
    size = min(max(1 << 30, 8 * cache), free // 4)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / replayed(lambda: _copy(target, source), 1)


def this_device() -> Device:
    """Measures the copy bandwidth. Raises RuntimeError without a CUDA device."""
    device = torch.device("cuda", torch.cuda.current_device())
    found = torch.cuda.get_device_properties(device)
    cache = getattr(found, "L2_cache_size", DEFAULT_L2) or DEFAULT_L2
    bandwidth = copy_bandwidth(cache, device)
    gc.collect()
    torch.cuda.empty_cache()  # what the allocator keeps is free too
    free, _ = torch.cuda.mem_get_info(device)
    return Device(device, found.name, driver_version(), cache, free, bandwidth, replayed)


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source)
