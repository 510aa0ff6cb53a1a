"""Large operations use all the threads they were given; the small ones between them use one.

With one thread count for everything, each small operation of a step ends at a barrier that costs more than it saves:
measured on two cores, two threads everywhere made adapters cost 1.53 times the base step, and two threads for products
and attention only 1.15 times, on a base step that was faster too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class _Count:
    """torch's thread count belongs to the process, and so does this one."""

    large = 1


def set_threads(count: int) -> None:
    """How many threads the functions marked `on_all_threads` use from now on; everything else uses one."""
    _Count.large = count
    torch.set_num_threads(1)


def threads() -> int:
    """Threads of large products, as `set_threads` was told."""
    return _Count.large


def on_all_threads(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function whose work is large: weight products, attention."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if _Count.large == 1:
            return function(*args, **kwargs)
        torch.set_num_threads(_Count.large)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_num_threads(1)

    return call
