"""S-LoRA's serving loop in virtual time (artifact, router/manager.py), with the production admission queue in front.

Differs from the production loop in what decides who meets a deadline: admission is tried when nothing runs and from the
tenth decode step after the last one that succeeded; prompts are computed by themselves while decoding stands still; a
request's whole output is reserved, and so are its adapter's weights, in the same pool."""

from __future__ import annotations

from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_sim.serving import Engine, Job
from lorafleet_sim.slora_workloads import Setting

GATE = 10
"""Decode steps between admissions (`max_wait_tokens`)."""
SEATS = 1000
ADAPTER_TOKENS = 4
"""Tokens of the pool for each rank of an adapter: q, k, v and o of a model without grouped queries."""


class SloraEngine(Engine):
    """`gate` of 0: admission at every step."""

    def __init__(self, queue: FairQueue, setting: Setting, gate: int = GATE) -> None:
        super().__init__(queue, setting.pool, setting.timing, seats=SEATS, staggered=True)
        self._gate = gate
        self._waited = 0
        self._most_prompt_tokens = max(setting.pool // 6, 3072)

    def fits(self, sequence: Sequence) -> bool:
        """The artifact's test: seats, prompt tokens of this admission, and the pool at every moment to come."""
        job = self._by_sequence[sequence.arrival]
        fresh = sum(other.request.prompt for other in self.running if other.first_token is None)
        if len(self.running) >= self._seats or fresh + job.request.prompt > self._most_prompt_tokens:
            return False
        return self._peak(job) + ADAPTER_TOKENS * sum(_ranks([*self.running, job]).values()) < self.pool

    def step(self) -> list[Job]:
        """Admit if it is time, and compute their prompts; or else a token for each that runs."""
        before = _ranks(self.running)
        admitted = self.admit() if not self.running or self._waited >= self._gate else []
        if admitted:
            self._waited = 0
            loads = len(_ranks(admitted).keys() - before.keys())
            prompts = sum(job.request.prompt for job in admitted)
            self.now += self._timing.of(0, prompts, len(_ranks(admitted)), loads)
        elif self.running:
            self._waited += 1
            self.now += self._timing.of(len(self.running), 0, len(before))
        else:
            return []
        self.steps += 1
        for job in admitted or list(self.running):
            self._make_token(job)
        return admitted


def _ranks(jobs: list[Job]) -> dict[str, int]:
    """Ranks of the distinct adapters."""
    return {job.request.adapter: job.request.rank for job in jobs if job.request.adapter}
