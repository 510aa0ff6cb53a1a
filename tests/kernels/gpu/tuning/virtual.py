"""Work that takes no time, and a clock that says what it would have taken."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from lorafleet_kernels.gpu.tuning.clock import REPEATS
from lorafleet_kernels.gpu.tuning.search import Budget

RIGHT = torch.tensor([1.0, -3.0, 0.5])
Form = TypeVar("Form", bound=Hashable)


class Bench(Generic[Form]):
    """Forms that take what `seconds` says, and whose results are wrong where `wrong` says so. Keeps what was timed."""

    copies = 2
    noise = 1e-4

    def __init__(self, seconds: Callable[[Form], float], wrong: Callable[[Form], bool] = lambda form: False) -> None:
        self.seconds, self.wrong = seconds, wrong
        self.too_large: Callable[[Form], bool] = lambda form: False
        self.timed: list[tuple[Form, int]] = []
        self._running: list[Form] = []

    def run(self, form: Form) -> Callable[[], None]:
        def run() -> None:
            self._running.append(form)

        return run

    def result(self, form: Form) -> Tensor:
        if self.too_large(form):
            raise OutOfResources(240000, 101376, "shared memory")
        return RIGHT + 1 if self.wrong(form) else RIGHT

    def clock(self, run: Callable[[], None], calls: int, /, repeats: int = REPEATS) -> float:
        assert calls == self.copies
        run()
        form = self._running.pop()
        self.timed.append((form, repeats))
        return self.seconds(form)


def endless() -> Budget:
    return Budget(1.0, lambda: 0.0)
