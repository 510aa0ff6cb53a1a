"""Time on a CUDA device: replays of a captured graph between two events. Nothing here runs without one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from statistics import median
from typing import Protocol

import torch

REPEATS = 7
LEAST_SECONDS = 2e-3
"""Of what lies between two events: starting a graph takes some microseconds, which are not to count."""


class Timer(Protocol):
    def __call__(self, run: Callable[[], None], calls: int, /, repeats: int = REPEATS) -> float:
        """Seconds of one of the `calls` that `run` makes: the median of `repeats` measurements."""
        ...


def replayed(run: Callable[[], None], calls: int, /, repeats: int = REPEATS) -> float:
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
    once = elapsed(graph.replay, 1)
    inner = max(1, round(LEAST_SECONDS / once))
    seconds = median(elapsed(graph.replay, inner) for _ in range(repeats))
    graph.reset()
    return seconds / calls


def elapsed(run: Callable[[], None], times: int) -> float:
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


@functools.cache
def _side_stream() -> torch.cuda.Stream:
    """One for all: products keep a workspace for each."""
    made: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return made
