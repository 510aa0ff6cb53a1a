"""schedule() -> Batch: continuous batching with chunked prefill, mixed with decode, and preemption by recompute.

Every step admits. Running sequences go first, so decode never waits for a prompt; what is left of the token budget
goes to prompts. Knows no tensors, clock or text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lorafleet_runtime.core.batch import Batch, Row, order_rows
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.pages import OutOfPages, PagePool, pages_for_tokens
from lorafleet_runtime.core.residency import Adapter, Residency
from lorafleet_runtime.core.sequence import Sequence, finish_reason_after

PREFETCHED = 4
"""How far ahead in the queue adapters are fetched."""


@dataclass(frozen=True, slots=True)
class Limits:
    max_model_len: int
    max_num_seqs: int
    max_batched_tokens: int


class Scheduler:
    """The waiting queue, the running set, and who gets pages."""

    def __init__(
        self, pool: PagePool, residency: Residency, limits: Limits, queue: FairQueue | None = None
    ) -> None:
        self._pool = pool
        self._residency = residency
        self._limits = limits
        self._waiting = FairQueue() if queue is None else queue
        self._running: list[Sequence] = []
        self._by_id: dict[str, Sequence] = {}
        self._arrivals = 0
        self.preemptions = 0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def queue(self) -> FairQueue:
        """Who waits, and everybody's account."""
        return self._waiting

    def queued(self) -> Iterator[Sequence]:
        """Waiting sequences, by tenant."""
        return iter(self._waiting)

    @property
    def waiting_tokens(self) -> int:
        return sum(s.pending for s in self._waiting)

    @property
    def kv_pages(self) -> int:
        return sum(len(s.pages) for s in self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._by_id)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. The caller has checked that it can ever fit (`reason_it_never_fits`)."""
        assert sequence.request_id not in self._by_id, sequence.request_id
        sequence.arrival = self._arrivals
        self._arrivals += 1
        self._by_id[sequence.request_id] = sequence
        self._enqueue(sequence, front=False)

    def reason_it_never_fits(self, prompt_tokens: int, adapter: Adapter | None) -> str | None:
        """Why a prompt could not run even on an empty replica, as a sentence; None when it can."""
        if prompt_tokens >= self._limits.max_model_len:
            return (
                f"the prompt has {prompt_tokens} tokens; with at least one token of output that is more than the "
                f"context of {self._limits.max_model_len}"
            )
        pinned = self._residency.pinned_pages - (adapter.pages_needed if adapter and adapter.pinned else 0)
        needed = pages_for_tokens(self._limits.max_model_len) + (adapter.pages_needed if adapter else 0) + pinned
        if needed > self._pool.total:
            return (
                f"a full context, the adapter and the pinned adapters need {needed} pages, the pool has "
                f"{self._pool.total}: raise engine.memory or lower maxModelLen"
            )
        return None

    def abort(self, request_id: str) -> Sequence | None:
        """Forget a request, wherever it is. Returns it, or None when it is not known (it may just have finished)."""
        sequence = self._by_id.pop(request_id, None)
        if sequence is None:
            return None
        sequence.finish_reason = "abort"
        if sequence in self._running:
            self._running.remove(sequence)
            self._free(sequence)
            self._waiting.leave(sequence)
        else:
            self._waiting.cancel(sequence)
            self._leave_queue(sequence)
        return sequence

    def schedule(self) -> Batch | None:
        """The next step's work, or None when there is none. Pages and adapters are taken here; `commit` follows."""
        budget = self._limits.max_batched_tokens
        rows: dict[str, Row] = {}
        preempted: list[Sequence] = []
        for sequence in list(self._running):
            count = min(sequence.pending, budget)
            if count and sequence not in preempted and self._grow(sequence, count, preempted):
                rows[sequence.request_id] = Row(sequence, sequence.computed, count)
                budget -= count
        # The pages of a sequence that had its row already went to another's.
        for sequence in preempted:
            rows.pop(sequence.request_id, None)
        uploads = [] if preempted else self._admit(rows, budget)
        if not rows:
            return None
        return Batch(order_rows(rows.values()), tuple(uploads), tuple(preempted))

    def commit(self, batch: Batch, sampled: Iterable[int]) -> list[tuple[Sequence, int]]:
        """Book a step that ran. `sampled` has one token per row with `samples`, in row order. Returns (sequence, token)
        for each; a sequence with `finish_reason` set has left and its pages are free."""
        tokens = iter(sampled)
        results: list[tuple[Sequence, int]] = []
        for row in batch.rows:
            sequence = row.sequence
            samples = row.samples
            sequence.computed = row.start + row.count
            if not samples:
                self._waiting.ran(sequence, row.start, row.count, made=0)
                continue
            token = next(tokens)
            sequence.tokens.append(token)
            self._waiting.ran(sequence, row.start, row.count, made=1)
            sequence.finish_reason = finish_reason_after(sequence, token, self._limits.max_model_len)
            if sequence.finish_reason is not None:
                self._running.remove(sequence)
                del self._by_id[sequence.request_id]
                self._free(sequence)
                self._waiting.leave(sequence)
            results.append((sequence, token))
        return results

    def _grow(self, sequence: Sequence, count: int, preempted: list[Sequence]) -> bool:
        """Pages for `count` more tokens of a running sequence, at the expense of idle adapters, then of the most served
        tenant's newest sequence. False when the sequence itself had to go."""
        missing = pages_for_tokens(sequence.computed + count) - len(sequence.pages)
        if missing <= 0:
            return True
        while True:
            try:
                self._residency.make_room(missing)
                sequence.pages += self._pool.allocate(missing)
                return True
            except OutOfPages:
                victim = max(self._running, key=self._waiting.rank)
                self._running.remove(victim)
                self._free(victim)
                self._enqueue(victim, front=True)
                preempted.append(victim)
                self.preemptions += 1
                if victim is sequence:
                    return False

    def _admit(self, rows: dict[str, Row], budget: int) -> list[Adapter]:
        """Move waiting sequences into the running set while tokens, seats and pages last; then fetch adapters of those
        that come next. Returns what to upload."""
        uploads: list[Adapter] = []
        while budget > 0 and len(self._running) < self._limits.max_num_seqs:
            sequence = self._waiting.head()
            if sequence is None:
                break
            count = min(sequence.pending, budget)
            try:
                uploads += self._take(sequence, count)
            except OutOfPages:
                break
            self._waiting.admit(sequence)
            self._leave_queue(sequence)
            self._running.append(sequence)
            rows[sequence.request_id] = Row(sequence, sequence.computed, count)
            budget -= count
        return uploads + self._prefetch() if len(self._waiting) and rows else uploads

    def _prefetch(self) -> list[Adapter]:
        """Pages for adapters of the next in the queue's order, as long as pages are free beyond one for each running
        sequence: nobody is evicted for a guess. Their weights travel with a step that runs anyway."""
        fetched: list[Adapter] = []
        for sequence in self._waiting.order.upcoming(PREFETCHED):
            adapter = sequence.adapter
            if adapter is None or adapter.resident:
                continue
            if self._pool.free < adapter.pages_needed + len(self._running):
                break
            self._residency.acquire(adapter)
            self._residency.release(adapter)
            fetched.append(adapter)
        return fetched

    def _take(self, sequence: Sequence, count: int) -> list[Adapter]:
        """Adapter and pages for a sequence's first `count` tokens, both or neither: an adapter that came without its
        sequence's pages would only push others out. Returns the adapter if it must be uploaded. Raises OutOfPages."""
        adapter = sequence.adapter
        wanted = pages_for_tokens(count)
        if adapter is None:
            self._residency.make_room(wanted)
            sequence.pages = self._pool.allocate(wanted)
            return []
        if not adapter.resident:
            self._residency.make_room(wanted + adapter.pages_needed)
        # Acquired before room is made for the pages: an idle adapter must not be evicted for its own sequence.
        uploaded = self._residency.acquire(adapter)
        try:
            self._residency.make_room(wanted)
        except OutOfPages:
            self._residency.release(adapter)
            raise
        sequence.pages = self._pool.allocate(wanted)
        return [adapter] if uploaded else []

    def _enqueue(self, sequence: Sequence, *, front: bool) -> None:
        if front:
            self._waiting.put_back(sequence)
        else:
            self._waiting.add(sequence)
        if sequence.adapter is not None:
            sequence.adapter.waiting += 1

    def _leave_queue(self, sequence: Sequence) -> None:
        if sequence.adapter is not None:
            sequence.adapter.waiting -= 1

    def _free(self, sequence: Sequence) -> None:
        """Give back pages and adapter; what was computed is to be computed again."""
        self._pool.release(sequence.pages)
        sequence.pages = []
        sequence.computed = 0
        if sequence.adapter is not None:
            self._residency.release(sequence.adapter)
