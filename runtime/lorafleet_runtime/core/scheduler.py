"""schedule() -> Batch: continuous batching with chunked prefill, mixed with decode, and preemption by recompute.

Every step admits. Running sequences go first, so decode never waits for a prompt; what is left of the token budget
goes to prompts. Knows no tensors, clock or text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Values
from itertools import chain, islice

from lorafleet_runtime.core.batch import Batch, Row, Step
from lorafleet_runtime.core.booking import append, expect
from lorafleet_runtime.core.cold import Cold
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.limits import Limits
from lorafleet_runtime.core.making_way import who_makes_way
from lorafleet_runtime.core.pages import PAGE_TOKENS, OutOfPages
from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.sequence import UNKNOWN, FinishReason, Sequence, is_full
from lorafleet_runtime.core.speculation import NOTHING, Speculation, accepted

PREFETCHED = 4
"""How far ahead in the queue adapters are fetched."""


class Scheduler:
    """The waiting queue, the running set, and who gets pages."""

    def __init__(self, room: Room, limits: Limits, queue: FairQueue | None = None) -> None:
        self._room = room
        self._limits = limits
        self._waiting = FairQueue() if queue is None else queue
        self._cold = Cold()
        self._soon: list[Sequence] = []
        self._running: list[Sequence] = []
        self._by_id: dict[str, Sequence] = {}
        self._arrivals = 0
        self._owed: list[Adapter] = []  # have pages, and no step has copied their weights there yet
        self.preemptions = 0
        self.speculation = Speculation(limits.max_drafts)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._cold)

    @property
    def queue(self) -> FairQueue:
        """Who waits, and everybody's account."""
        return self._waiting

    def queued(self) -> Iterator[Sequence]:
        """Waiting sequences, by tenant; then those whose adapter is being read."""
        return chain(self._waiting, self._cold)

    @property
    def waiting_tokens(self) -> int:
        return sum(s.pending for s in self.queued())

    @property
    def has_work(self) -> bool:
        return bool(self._by_id)

    @property
    def only_reads(self) -> bool:
        """Whether all that is left to do waits for an adapter to be read from disk."""
        return len(self._by_id) == len(self._cold)

    def wanted(self) -> list[Adapter]:
        """Adapters that are read from disk, or soon should be, the most urgent first, as `schedule` has left it."""
        return [*self._cold.adapters, *(s.adapter for s in self._soon if s.adapter)]

    def came(self, adapter: Adapter) -> None:
        """An adapter's weights are at hand: who waited for them goes on."""
        for sequence in self._cold.take(adapter):
            self._waiting.restore(sequence)

    def never_comes(self, adapter: Adapter) -> list[Sequence]:
        """An adapter cannot be read: those that waited for it are given up. Returns them."""
        given_up = self._cold.take(adapter)
        for sequence in given_up:
            del self._by_id[sequence.request_id]
            sequence.finish_reason = "error"
            self._waiting.cancel(sequence)
            self._leave_queue(sequence)
        return given_up

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. The caller has checked that it can ever fit (`reason_it_never_fits`)."""
        assert sequence.request_id not in self._by_id, sequence.request_id
        sequence.arrival = self._arrivals
        self._arrivals += 1
        self._by_id[sequence.request_id] = sequence
        self.speculation.join(sequence)
        self._enqueue(sequence, front=False)

    def reason_it_never_fits(self, prompt_tokens: int, adapter: Adapter | None) -> str | None:
        """Why a prompt could not run even on an empty replica, as a sentence; None when it can."""
        return self._room.reason_it_never_fits(prompt_tokens, adapter)

    def abort(self, request_id: str) -> Sequence | None:
        """Forget a request, wherever it is. Returns it, or None when it is not known (it may just have finished)."""
        sequence = self._by_id.get(request_id)
        if sequence is not None:
            self._end(sequence, "abort")
        return sequence

    def schedule(self, foreseen: Mapping[str, Values[int]] = NOTHING) -> Batch | None:
        """The next step's work, or None when there is none. Pages and adapters are taken here; `commit` follows, at the
        latest before the second `schedule` from here: a batch may be asked for while the one before it still runs, as
        what that one will have computed is known, but for the tokens that it samples. `foreseen`: `Speculation.draft`.

        First the sequences that decode, then tenants of whom nothing runs yet, then prompts under way, the least served
        first, then whoever waits: so a flood of long prompts does not keep the first token from others."""
        step = Step(self._limits.max_batched_tokens, self._owed)
        prompts = []
        for sequence in list(self._running):
            if self._sits_out(sequence):
                continue
            if sequence.pending > 1:
                prompts.append(sequence)
            else:
                self._go_on(sequence, step)
        if not step.preempted:
            self._admit(step, only_newcomers=True)
        for sequence in sorted(prompts, key=self._waiting.rank):
            self._go_on(sequence, step)
        if not step.preempted:
            self._admit(step)
        self._soon = self._waiting.order.upcoming(PREFETCHED) if len(self._waiting) else []
        if step.rows:
            step.uploads += self._room.prefetch(self._soon, len(self._running), step.uploads)
        self.speculation.draft(step, self._room, self._limits.max_model_len, len(self._running), foreseen)
        batch = step.batch()
        self._owed = step.uploads if batch is None else []
        if batch is not None:
            expect(batch)
        return batch

    def commit(self, batch: Batch, sampled: Iterable[int]) -> list[tuple[Sequence, list[int]]]:
        """Book a step that ran. `sampled` has `Row.sampled` tokens of each row, in row order. Returns (sequence, its
        new tokens) for each that is still wanted; a sequence with `finish_reason` set has left, its pages are free."""
        samples = iter(sampled)
        results: list[tuple[Sequence, list[int]]] = []
        for row in batch.rows:
            sequence = row.sequence
            made = accepted(row.drafts, list(islice(samples, row.sampled)))
            if sequence.finish_reason is not None:  # it ended, or was aborted, while this step ran
                continue
            reason = append(row, made, self._limits.max_model_len) if made else None
            self.speculation.land(row, len(made))
            self._room.prefixes.keep(sequence)
            self._waiting.ran(sequence, row.start, row.count, made=len(made))
            if reason is not None:
                self._end(sequence, reason)
            if made:
                results.append((sequence, made))
        return results

    def _sits_out(self, sequence: Sequence) -> bool:
        """Whether a sequence waits for the token that is being sampled for it before it goes on."""
        if sequence.tokens[-1] != UNKNOWN:
            return False
        if sequence.reads_output or self.speculation.waits(sequence):
            return True
        return is_full(sequence, len(sequence.tokens), self._limits.max_model_len)

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        """Take a sequence out, wherever it is."""
        del self._by_id[sequence.request_id]
        sequence.finish_reason = reason
        if sequence in self._running:
            self._running.remove(sequence)
            self._room.free(sequence)
            self._waiting.leave(sequence)
            return
        if sequence in self._cold:
            self._cold.remove(sequence)
        self._waiting.cancel(sequence)
        self._leave_queue(sequence)

    def _go_on(self, sequence: Sequence, step: Step) -> None:
        """A running sequence's row, at the expense of idle adapters, then of the most served tenant's newest sequence,
        which may be itself."""
        count = min(sequence.pending, step.budget)
        while count and sequence not in step.preempted:
            try:
                self._room.extend(sequence, count)
            except OutOfPages:
                self._preempt(max(self._running, key=self._waiting.rank), step)
            else:
                step.add(Row.of(sequence, count))
                return

    def _admit(self, step: Step, *, only_newcomers: bool = False) -> None:
        """Move waiting sequences into the running set while tokens, seats and pages last."""
        while step.budget > 0:
            sequence = self._waiting.head()
            if sequence is None or (only_newcomers and not self._waiting.is_newcomer(sequence)):
                return
            if self._sits_out(sequence):  # preempted while a step runs that samples for it
                return
            if sequence.adapter is not None and not sequence.adapter.at_hand:
                # Others do not wait for a disk.
                if self._cold.full:
                    return
                self._waiting.set_aside(sequence)
                self._cold.add(sequence)
                continue
            if not self._room.may_copy(sequence.adapter, step.uploads):
                return
            found = self._room.prefixes.find(sequence)
            count = min(len(sequence.tokens) - PAGE_TOKENS * len(found), step.budget)
            seats, running = self._limits.max_num_seqs, self._running
            victims = who_makes_way(sequence, found, count, running, seats, self._room, self._waiting)
            if victims is None:
                return
            for victim in victims:
                self._preempt(victim, step)
            step.uploads += self._room.admit(sequence, found, count)
            self._waiting.admit(sequence)
            self._leave_queue(sequence)
            self._running.append(sequence)
            step.add(Row.of(sequence, count))

    def _preempt(self, victim: Sequence, step: Step) -> None:
        self._running.remove(victim)
        self._room.free(victim)
        self._enqueue(victim, front=True)
        step.drop(victim)
        self.preemptions += 1

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
