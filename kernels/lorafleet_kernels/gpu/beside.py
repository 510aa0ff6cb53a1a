"""Work beside the base model's products, inside one captured graph.

A decode step's product waits for its weights; a shrink waits for its adapter's. Side by side, each hides the other's
start and end: SGLang's tuner found this the best in every decode case on sm_90 (engine_kernels 1.2). Without a graph
the events between two streams cost more than they save."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch


class Beside:
    """A second stream of one device, for work that `begin` starts and `join` waits for."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self, work: Callable[[], None]) -> None:
        """Launch `work` behind all that was launched before, beside what is launched after."""
        self._stream.wait_stream(torch.cuda.current_stream())
        there: AbstractContextManager[object] = torch.cuda.stream(self._stream)
        with there:
            work()

    def join(self) -> None:
        """What is launched from now on comes behind that work."""
        torch.cuda.current_stream().wait_stream(self._stream)
