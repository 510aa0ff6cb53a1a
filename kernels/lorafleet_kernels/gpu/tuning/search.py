"""The fastest of several forms of one thing, whichever kernel it is: measured, and right before it counts.

Forms are timed roughly first, then the best of them again, more often: successive halving."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from statistics import geometric_mean
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from triton.errors import TritonError

from lorafleet_kernels.gpu.tuning.clock import REPEATS, Timer

WORTH = 1.03
"""A form that gains less is not taken: what the clock cannot tell from noise stays as it is everywhere."""
ROUNDS = ((1, 4), (3, 3))
"""Repeats in a rough round, and one of how many goes on; the last round has `REPEATS`."""
LEAST_LEFT = 3
HEADROOM = 2
"""Copies of what is worked on fill so many L2 caches, at least."""
NARROWEST = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9, torch.float32: 2.0**-18}
"""How far a right form may be off the default, of a value: a few units in the last place, as sums have other orders."""

Say = Callable[[str], None]
Form = TypeVar("Form", bound=Hashable)
_Tried = TypeVar("_Tried", bound=Hashable, contravariant=True)


class Work(Protocol[_Tried]):
    """What is computed in any form, in so many copies that none is still in the L2 cache when it is its turn again, as
    in an engine, whose other layers come between. `noise`: how far a right result may be off, of the largest value,
    beside `NARROWEST`."""

    @property
    def copies(self) -> int: ...

    @property
    def noise(self) -> float: ...

    def run(self, form: _Tried) -> Callable[[], None]:
        """Computes every copy in that form, in order."""
        ...

    def result(self, form: _Tried) -> Tensor:
        """What the first copy becomes, from the same start every time."""
        ...


class OutOfTime(Exception):
    """The tuner's seconds are spent."""


class Budget:
    """So many seconds from now on. Virtual time in tests."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._end = now, now() + seconds

    def check(self) -> None:
        """Raises OutOfTime."""
        if self._now() >= self._end:
            raise OutOfTime


def copies_past(cache: int, moved: int) -> int:
    """How many copies that move so many bytes each leave nothing of themselves in a cache of `cache` bytes."""
    return max(2, HEADROOM * cache // moved + 1)


def expected_of(default: Form, works: Sequence[Work[Form]]) -> list[Tensor]:
    """The default's results. Raises ValueError where it does not run, or what it gives is no number."""
    try:
        results = [work.result(default) for work in works]
    except TritonError as error:
        raise ValueError(f"the default form does not run on this card: {_short(error)}") from error
    if not all(bool(result.isfinite().all()) for result in results):
        raise ValueError("the default form's result is no number")
    return results


def right(
    forms: Iterable[Form], expected: Sequence[Tensor], works: Sequence[Work[Form]], budget: Budget, say: Say,
    shown: Callable[[Form], str] = str,
) -> list[Form]:  # fmt: skip
    """Those whose results are the default's; of others is said why not. Raises OutOfTime."""
    found = []
    for form in forms:
        budget.check()
        try:
            if all(agrees(work.result(form), one, work.noise) for work, one in zip(works, expected, strict=True)):
                found.append(form)
            else:
                say(f"left out, its result is wrong: {shown(form)}")
        except TritonError as error:  # more shared memory or registers than this card has
            say(f"left out, {_short(error)}: {shown(form)}")
    return found


def fastest(
    forms: Sequence[Form], default: Form, works: Sequence[Work[Form]], timer: Timer, budget: Budget
) -> dict[Form, tuple[float, ...]]:
    """Seconds of each of `works`, of the forms that were left in the last round, the fastest over all works first; the
    default is among them, where it is in `forms`. Raises OutOfTime."""
    left = list(forms)
    for repeats, among in ROUNDS:
        if len(left) > LEAST_LEFT:
            kept = list(_timed(left, repeats, works, timer, budget))[: max(LEAST_LEFT, -(-len(left) // among))]
            left = [form for form in left if form in kept or form == default]
    return _timed(left, REPEATS, works, timer, budget)


def worth_it(seconds: Sequence[float], before: Sequence[float]) -> bool:
    """Whether a form that takes so long is to stand in for one that takes `before`."""
    return geometric_mean(before) >= WORTH * geometric_mean(seconds)


def agrees(result: Tensor, expected: Tensor, noise: float) -> bool:
    """Whether two results of the same sum in another order are the same, but for rounding. Never with NaN."""
    allowed = NARROWEST[expected.dtype] * expected.double().abs() + noise * expected.double().abs().max()
    return bool(((result.double() - expected.double()).abs() <= allowed).all())


def _timed(
    forms: Sequence[Form], repeats: int, works: Sequence[Work[Form]], timer: Timer, budget: Budget
) -> dict[Form, tuple[float, ...]]:
    """The fastest first: by the geometric mean, so that every work counts alike, whatever it takes."""
    seconds = {}
    for form in forms:
        budget.check()
        seconds[form] = tuple(timer(work.run(form), work.copies, repeats) for work in works)
    return dict(sorted(seconds.items(), key=lambda found: geometric_mean(found[1])))


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"
