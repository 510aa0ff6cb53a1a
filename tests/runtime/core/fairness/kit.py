"""Small runs of the simulated engine, and the bounds that they are held to. Service in micro-units, time in steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from lorafleet_runtime.core.fairness.cost import MICRO
from lorafleet_runtime.core.fairness.vtc import Vtc
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.protocol import Sampling
from lorafleet_sim.fairness_policies import queue_for
from lorafleet_sim.serving import Engine
from lorafleet_sim.workloads import Request

EXAMPLES = 300 if os.environ.get("CI") else 100

Property = Callable[[Callable[..., None]], Callable[..., None]]


def for_seeds(*more: st.SearchStrategy[object]) -> Property:
    """The property holds for so many seeds (and whatever else is drawn)."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        return settings(max_examples=EXAMPLES)(given(st.integers(0, 2**32), *more)(test))

    return decorate


def sequence(
    tenant: str = "a", prompt: int = 10, output: int = 4, *, arrival: int = 0, weight: float = 1.0, user: str = ""
) -> Sequence:
    """A request that may be answered with `output` tokens."""
    sampling = Sampling(max_tokens=output)
    return Sequence(f"{tenant}{arrival}", [1] * prompt, prompt, sampling, None, tenant, weight, user, arrival)


def bound_of(pool: int, longest: int, input_weight: int = 1, output_weight: int = 2) -> int:
    """U* = w_q·M + max(0, w_p - w_q)·L_input, in micro-units."""
    return MICRO * (output_weight * pool + max(0, input_weight - output_weight) * longest)


def engine(pool: int, policy: str = "vtc") -> Engine:
    return Engine(queue_for(policy, pool=pool), pool)


def spread(engine: Engine) -> int:
    """How far the counters of clients that wait are apart."""
    counters = [engine.queue.order.meter.counter(client) for client in engine.backlogged]
    return max(counters) - min(counters) if counters else 0


def lifts_of(engine: Engine) -> int:
    assert isinstance(engine.queue.order, Vtc)
    return engine.queue.order.lifted


def trace_of(engine: Engine) -> list[tuple[str, float | None, float | None]]:
    """The schedule: who was admitted and ended when."""
    return [(job.sequence.request_id, job.admitted, job.finished) for job in engine.jobs]


def flood(client: str, count: int, prompt: int, output: int, at: float = 0.0, weight: float = 1.0) -> list[Request]:
    """That many requests at once."""
    return [Request(client, at, prompt, output, weight=weight)] * count


def drive(engine: Engine, requests: Iterable[Request], check: Callable[[], None]) -> None:
    """To the last token; `check` after every arrival, every filling of the batch and every token."""
    coming = list(requests)[::-1]
    while coming or engine.busy:
        while coming and coming[-1].at <= engine.now:
            engine.offer(coming.pop())
            check()
        if not engine.busy:
            engine.now = coming[-1].at
            continue
        engine.admit()
        check()
        engine.step()
        check()
