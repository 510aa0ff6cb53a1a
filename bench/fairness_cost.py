"""What fairness costs the engine's thread: time by operation and number of tenants, and memory."""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence

from bench.fairness_suites import BENCH
from bench.record import Result
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.sequence import Sequence as Request
from lorafleet_runtime.protocol import Sampling

TENANTS = (10, 100, 1_000, 10_000)
BATCH = 64
STEP_SECONDS = 0.010
SAMPLING = Sampling(max_tokens=10_000)


def costs(*, repeats: int) -> list[Result]:
    """Medians over `repeats`."""
    found = []
    for tenants in TENANTS:
        for name, seconds in _operations(tenants, repeats).items():
            case = f"cost: {tenants:,} tenants"
            found.append(Result(BENCH, case, name, seconds * 1e6, "µs", repeats=repeats))
    step = statistics.median(_step(1_000) for _ in range(repeats))
    share = step / STEP_SECONDS
    found.append(
        Result(BENCH, f"cost: 1,000 tenants, batch of {BATCH}", "share of a 10 ms step", share * 100, "%", None, None,
               "≤ 1", share <= 0.01, repeats)
    )  # fmt: skip
    found.append(Result(BENCH, "cost: 10,000 tenants", "memory", _memory(10_000) / 2**20, "MiB"))
    return found


def _request(tenant: int, arrival: int) -> Request:
    return Request(f"{arrival}", [0] * 16, 16, SAMPLING, None, f"tenant-{tenant}", arrival=arrival)


def _full(tenants: int) -> tuple[FairQueue, int]:
    """A queue in which everybody has two requests waiting and has been served before; and how many there were."""
    queue = FairQueue()
    arrival = 0
    for each in range(3):
        for tenant in range(tenants):
            queue.add(_request(tenant, arrival))
            arrival += 1
        if each == 0:
            for _ in range(tenants):
                head = queue.head()
                assert head is not None
                queue.admit(head)
    return queue, arrival


def _operations(tenants: int, repeats: int) -> dict[str, float]:
    """Seconds of one operation."""
    taken: dict[str, list[float]] = {"add": [], "head and admit": [], "ran": [], "leave": []}
    for _ in range(repeats):
        queue, arrival = _full(tenants)
        fresh = [_request(i * 7919 % tenants, arrival + i) for i in range(1000)]
        taken["add"].append(_each(queue.add, fresh))
        admitted: list[Request] = []

        def admit(_: Request, queue: FairQueue = queue, admitted: list[Request] = admitted) -> None:
            head = queue.head()
            assert head is not None
            queue.admit(head)
            admitted.append(head)

        count = min(1000, len(queue))
        taken["head and admit"].append(_each(admit, fresh[:count]))

        def ran(request: Request, queue: FairQueue = queue) -> None:
            request.tokens.append(0)
            queue.ran(request, len(request.tokens) - 2, 1, 1)

        taken["ran"].append(_each(ran, admitted))
        taken["leave"].append(_each(queue.leave, admitted))
    return {name: statistics.median(times) for name, times in taken.items()}


def _each(work: Callable[[Request], object], requests: Sequence[Request]) -> float:
    gc.collect()
    begun = time.perf_counter()
    for request in requests:
        work(request)
    return (time.perf_counter() - begun) / len(requests)


def _step(tenants: int) -> float:
    """Seconds that one step spends on fairness: a token of each of the batch, one that leaves, one that is admitted in
    its place and one that arrives. Mean of 200 steps."""
    queue, arrival = _full(tenants)
    running: list[Request] = []
    for _ in range(BATCH):
        head = queue.head()
        assert head is not None
        queue.admit(head)
        running.append(head)
    fresh = [_request(i * 7919 % tenants, arrival + i) for i in range(200)]
    gc.collect()
    begun = time.perf_counter()
    for step in range(200):
        for request in running:
            request.tokens.append(0)
            queue.ran(request, len(request.tokens) - 2, 1, 1)
        queue.leave(running[step % BATCH])
        queue.add(fresh[step])
        head = queue.head()
        assert head is not None
        queue.admit(head)
        running[step % BATCH] = head
    return (time.perf_counter() - begun) / 200


def _memory(tenants: int) -> int:
    """Bytes of the accounts and counters of tenants that have nothing waiting any more."""
    gc.collect()
    tracemalloc.start()
    queue = FairQueue()
    for tenant in range(tenants):
        request = _request(tenant, tenant)
        queue.add(request)
        queue.admit(request)
        queue.leave(request)
    del request
    gc.collect()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held
