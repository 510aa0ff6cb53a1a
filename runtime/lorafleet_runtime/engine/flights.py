"""Steps under way: with two at once, the next one is scheduled and laid out while the one before it computes.

A device, or a thread in its place, runs them in the order in which they were launched."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from lorafleet_runtime.core.batch import Batch
from lorafleet_runtime.engine.runner import Runner
from lorafleet_runtime.engine.sampling.sampler import Sampled
from lorafleet_runtime.engine.step_error import launch_step
from lorafleet_runtime.engine.step_plan import Plan


@dataclass(frozen=True, slots=True)
class Landed:
    """A step that has run: `Row.sampled` samples of each row; `seconds` that it kept the device; `prompt_tokens` of
    requests without output."""

    batch: Batch
    samples: list[Sampled]
    seconds: float
    prompt_tokens: int

    def by_request(self) -> dict[str, list[Sampled]]:
        """The samples of each row that samples."""
        left = iter(self.samples)
        return {row.sequence.request_id: list(islice(left, row.sampled)) for row in self.batch.sampling}

    def constrained(self, samples: Mapping[str, list[Sampled]]) -> list[tuple[str, list[int]]]:
        """Request id and output of those that have a constraint, with `samples`, before these are committed."""
        bound = [row.sequence for row in self.batch.sampling if row.sequence.sampling.constraint is not None]
        return [
            (sequence.request_id, [*sequence.output_tokens, *(each.token_id for each in samples[sequence.request_id])])
            for sequence in bound
            if samples[sequence.request_id][-1].token_id >= 0
        ]


@dataclass(frozen=True, slots=True)
class _Flight:
    batch: Batch
    samples: Callable[[], list[Sampled]]
    launched: float
    prompt_tokens: int


class Flights:
    """At most `most` steps: one, or two, which run in a thread of their own where the runner waits for what it
    launches."""

    def __init__(self, runner: Runner, most: int) -> None:
        self._runner = runner
        self._most = most
        self._under_way: deque[_Flight] = deque()
        self._device = ThreadPoolExecutor(1, "device") if most > 1 and not runner.launches else None
        self._landed_at = 0.0

    def __len__(self) -> int:
        return len(self._under_way)

    @property
    def full(self) -> bool:
        """Whether one has to land before the next is launched."""
        return len(self._under_way) >= self._most

    def plan(self, batch: Batch) -> Plan:
        """A batch as it is now, to be launched as the next one; what is under way may land before."""
        return self._runner.plan(batch, self._under_way[-1].batch if self._under_way else None)

    def launch(self, batch: Batch, plan: Plan) -> None:
        """Run a batch as it was planned. Raises StepFailed or RankDied, here or when it lands."""
        assert not self.full, "one has to land first"
        prompt_tokens = sum(row.count for row in batch.rows if row.sequence.output_len == 0)
        launched = time.perf_counter()
        if self._device is None:
            samples = launch_step(self._runner, plan)
        else:
            samples = self._device.submit(lambda: launch_step(self._runner, plan)()).result
        self._under_way.append(_Flight(batch, samples, launched, prompt_tokens))

    def land(self) -> Landed:
        """Wait for the oldest."""
        flight = self._under_way.popleft()
        samples = flight.samples()
        begun, self._landed_at = max(flight.launched, self._landed_at), time.perf_counter()
        return Landed(flight.batch, samples, self._landed_at - begun, flight.prompt_tokens)

    def close(self) -> None:
        """Let go of the thread, once what it runs has ended."""
        if self._device is not None:
            self._device.shutdown()
