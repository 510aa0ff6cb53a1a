"""One engine in virtual time, with the production admission queue in front: what a policy does to whom, and when.

Continuous batching over a pool of tokens, as in the VTC paper (OSDI'24, section 2): who is admitted runs to its end.
Knows no policy and charges nothing itself; its own account of service, `served`, is kept apart from the queue's, so
that one can be held against the other."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass

from lorafleet_runtime.core.fairness.cost import MICRO, Cost, Linear
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.protocol import Sampling
from lorafleet_sim.workloads import Request

SEATS = 256


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a step: `base` + `per_row`·rows + `per_prompt_token`·prompt tokens computed, and for adapters
    `per_adapter`·distinct ones in the batch + `per_load`·those brought in for it."""

    base: float
    per_row: float = 0.0
    per_prompt_token: float = 0.0
    per_adapter: float = 0.0
    per_load: float = 0.0

    def of(self, rows: int, prompt_tokens: int, adapters: int = 0, loads: int = 0) -> float:
        seconds = self.base + self.per_row * rows + self.per_prompt_token * prompt_tokens
        return seconds + self.per_adapter * adapters + self.per_load * loads


A10G = Timing(0.022, 0.001, 0.000218)
"""Llama-2-7B on an A10G as the VTC paper measured it: 0.0558 s of prefill a request of 256 tokens (the artifact's cost
profile), and steps such that a `staggered` pool of 10,000 gives some 860 tokens/s of requests of 256 in and 256 out,
and some 780 on the real trace; the paper's gave 875 and 777."""

STEPS = Timing(1.0)
"""Time counted in steps."""


@dataclass(slots=True, eq=False)
class Job:
    """A request's fate, in seconds; None for what has not happened."""

    request: Request
    sequence: Sequence
    admitted: float | None = None
    first_token: float | None = None
    finished: float | None = None
    refused: bool = False  # also by early abort, later than it came

    @property
    def reserved(self) -> int:
        """Tokens of the pool that it takes while it runs."""
        return self.request.prompt + self.request.most


class Engine:
    """`offer` arrivals, `step` until nothing is left; or `run`, which does both."""

    def __init__(
        self,
        queue: FairQueue,
        pool: int,
        timing: Timing = STEPS,
        cost: Cost | None = None,
        seats: int = SEATS,
        staggered: bool = False,
        name: str = "",
    ) -> None:
        """`pool` in tokens. A request takes its prompt and all that it may be answered with; or, `staggered`, it is
        admitted when the pool suffices at every moment to come, since some end before others have grown (S-LoRA's
        test, which the paper's artifact uses)."""
        self.queue = queue
        self.pool = pool
        self.now = 0.0
        self.steps = 0
        self.free = pool
        self.jobs: list[Job] = []
        self.running: list[Job] = []
        self.served: dict[str, int] = {}  # micro-units of service executed, by client, not divided by weights
        self.tokens = 0  # prompt tokens computed and output tokens made
        self._timing = timing
        self._cost = cost or Linear()
        self._seats = seats
        self._staggered = staggered
        self._name = name
        self._by_sequence: dict[int, Job] = {}  # by arrival
        self._adapters: dict[str, Adapter] = {}

    @property
    def busy(self) -> bool:
        return bool(self.running) or len(self.queue) > 0

    @property
    def backlogged(self) -> set[str]:
        """Clients with something waiting."""
        return {client for client, tally in self.queue.tallies.items() if tally.waiting}

    def fits(self, sequence: Sequence) -> bool:
        """Whether the pool has room for all that it may grow to."""
        job = self._by_sequence[sequence.arrival]
        if len(self.running) >= self._seats:
            return False
        if job.reserved <= self.free:
            return True
        return self._staggered and self._peak(job) <= self.pool

    def offer(self, request: Request) -> Job:
        """An arrival, now. It must fit into an empty pool."""
        assert request.prompt + request.most <= self.pool, request
        arrival = len(self.jobs)
        sequence = Sequence(
            f"{self._name}{arrival}", [0] * request.prompt, request.prompt, Sampling(max_tokens=request.most),
            self.adapter(request), request.client, request.weight, request.user, arrival, request.at,
            cached=request.cached,
        )  # fmt: skip
        job = Job(request, sequence)
        self.jobs.append(job)
        self._by_sequence[arrival] = job
        self.served.setdefault(request.client, 0)
        if self.queue.refuses(request.client, self.now) is not None:
            job.refused = True
        else:
            self.queue.add(sequence)
        return job

    def adapter(self, request: Request) -> Adapter | None:
        """The adapter that a request names."""
        if not request.adapter:
            return None
        known = self._adapters.get(request.adapter)
        if known is None:
            known = Adapter(len(self._adapters), request.adapter, "", request.rank, 0, 0, ())
            self._adapters[request.adapter] = known
        return known

    def cancel(self, job: Job) -> None:
        """The client goes away; nothing happens to what has ended."""
        if job.finished is not None or job.refused:
            return
        job.finished = self.now
        job.sequence.finish_reason = "abort"
        if job in self.running:
            self.running.remove(job)
            self.free += job.reserved
            self.queue.leave(job.sequence)
        else:
            self.queue.cancel(job.sequence)

    def admit(self) -> list[Job]:
        """Give up whom the queue gives up, fill the batch in its order, and stop at the first that does not fit."""
        for lost in self.queue.expired(self.now):
            job = self._by_sequence[lost.arrival]
            self.cancel(job)
            job.refused = True
        admitted = []
        while (sequence := self.queue.head()) is not None and self.fits(sequence):
            job = self._by_sequence[sequence.arrival]
            self.queue.admit(sequence)
            job.admitted = self.now
            self.free -= job.reserved
            self.running.append(job)
            admitted.append(job)
        return admitted

    def step(self) -> list[Job]:
        """Admit, compute, and book one token for each that runs. Returns those that were admitted."""
        admitted = self.admit()
        fresh = sum(job.request.prompt - job.request.cached for job in admitted)
        if not self.running:
            return admitted  # all that waited was given up
        self.now += self._timing.of(len(self.running), fresh)
        self.steps += 1
        for job in list(self.running):
            self._make_token(job)
        return admitted

    def run(
        self, requests: list[Request], until: float = float("inf"), watch: Callable[[], None] | None = None
    ) -> None:
        """Requests by time of arrival, to the last token or `until`; `watch` is called after each step."""
        coming = iter(requests)
        request = next(coming, None)
        while self.now < until:
            while request is not None and request.at <= self.now:
                self.offer(request)
                request = next(coming, None)
            if not self.busy:
                if request is None:
                    return
                self.now = request.at
                continue
            self.step()
            if watch is not None:
                watch()

    def _peak(self, candidate: Job) -> int:
        """The most tokens that will be held at once, if all run to their limits: max_j (left_j·j + Σ_{i≤j} used_i), by
        what is left, descending."""
        jobs = [(job.request.most - job.sequence.output_len, len(job.sequence.tokens)) for job in self.running]
        jobs.sort(reverse=True)
        insort(jobs, (candidate.request.most, candidate.request.prompt), key=lambda job: -job[0])
        used = most = 0
        for position, (left, tokens) in enumerate(jobs, start=1):
            used += tokens
            most = max(most, left * position + used)
        return most

    def _make_token(self, job: Job) -> None:
        sequence, request = job.sequence, job.request
        prompt, output = request.prompt, sequence.output_len
        if job.first_token is None:
            job.first_token = self.now
            start, count = request.cached, prompt - request.cached
            self.served[request.client] += self._cost.of(prompt, 0, request.cached)
            self.tokens += prompt
        else:
            start, count = len(sequence.tokens) - 1, 1
        sequence.tokens.append(0)
        sequence.computed = start + count
        self.tokens += 1
        self.served[request.client] += self._cost.of(prompt, output + 1, request.cached) - self._cost.of(
            prompt, output, request.cached
        )
        self.queue.ran(sequence, start, count, made=1)
        if sequence.output_len >= request.output:
            job.finished = self.now
            sequence.finish_reason = "length" if request.output == request.most else "stop"
            self.running.remove(job)
            self.free += job.reserved
            self.queue.leave(sequence)


def units(micro: float) -> float:
    """Service in units: prompt tokens, with the default cost."""
    return micro / MICRO
