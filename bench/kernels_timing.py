"""Time on a CUDA device: replays of a captured graph between two events. Nothing here runs without one."""

from __future__ import annotations

import functools
import gc
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import torch

from bench.record import Result

REPEATS = 7
LEAST_SECONDS = 2e-3
"""Of what lies between two events: starting a graph takes some microseconds, which are not to count."""
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


def replayed(run: Callable[[], None], calls: int) -> float:
    """Seconds of one of the `calls` that `run` makes: the median of repeats of a captured graph.

    `run` must allocate nothing that it wants to keep, and not wait for the device. It is run once before, which
    compiles kernels and makes what others make at first use."""
    side = _side_stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):  # where it was warmed: some keep scratch for each stream
        run()
    graph.replay()
    once = _elapsed(graph.replay, 1)
    inner = max(1, round(LEAST_SECONDS / once))
    seconds = median(_elapsed(graph.replay, inner) for _ in range(REPEATS))
    graph.reset()
    return seconds / calls


def eager(run: Callable[[], None], calls: int) -> float:
    """The same without a graph: what the host needs to launch counts."""
    run()
    return median(_elapsed(run, 1) for _ in range(REPEATS)) / calls


def _elapsed(run: Callable[[], None], times: int) -> float:
    """Seconds of one of `times` runs, on the device's clock."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3 / times


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
    return Device(device, found.name, _driver(), cache, free, bandwidth, replayed)


@functools.cache
def _side_stream() -> torch.cuda.Stream:
    """One for all: products keep a workspace for each."""
    made: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return made


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source)


def _driver() -> str:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else "unknown"
