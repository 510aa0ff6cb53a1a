"""What one step runs: rows of tokens, grouped by adapter. Plain values, no tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.core.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens `start .. end` of one sequence. `samples`: the row reaches the sequence's last token, so that the next
    one can be sampled. `drafts`, of a row that decodes: guesses at what follows, which are computed and sampled after
    as if they were tokens."""

    sequence: Sequence
    start: int
    count: int
    samples: bool
    drafts: tuple[int, ...] = ()

    @classmethod
    def of(cls, sequence: Sequence, count: int) -> Row:
        """The next `count` tokens of it."""
        return cls(sequence, sequence.computed, count, samples=count == sequence.pending)

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def decodes(self) -> bool:
        return self.count == 1

    @property
    def sampled(self) -> int:
        """How many tokens are sampled for it."""
        return self.samples + len(self.drafts)


@dataclass(frozen=True, slots=True)
class Batch:
    """Decode rows first, each part sorted by adapter, so that a segment is a slice and an adapter has at most two."""

    rows: tuple[Row, ...]
    uploads: tuple[Adapter, ...] = ()  # pages were given to these adapters; their weights must be copied first
    preempted: tuple[Sequence, ...] = field(default=(), compare=False)

    @property
    def decodes(self) -> int:
        """How many leading rows decode."""
        return sum(row.decodes for row in self.rows)

    @property
    def tokens(self) -> int:
        return sum(row.count + len(row.drafts) for row in self.rows)

    @property
    def sampling(self) -> tuple[Row, ...]:
        """The rows that sample, in order."""
        return tuple(row for row in self.rows if row.samples)


class Step:
    """A batch in the making. `owed` is what earlier steps that did not run should have uploaded."""

    def __init__(self, budget: int, owed: Iterable[Adapter] = ()) -> None:
        self.budget = budget
        self.rows: dict[str, Row] = {}
        self.uploads = list(owed)
        self.preempted: list[Sequence] = []

    def add(self, row: Row) -> None:
        self.rows[row.sequence.request_id] = row
        self.budget -= row.count

    def widen(self, row: Row) -> None:
        """A row that the step has, with drafts."""
        self.rows[row.sequence.request_id] = row
        self.budget -= len(row.drafts)

    def drop(self, sequence: Sequence) -> None:
        """Its pages, and the tokens of its row if it had one, are others'."""
        self.preempted.append(sequence)
        row = self.rows.pop(sequence.request_id, None)
        self.budget += row.count if row else 0

    def batch(self) -> Batch | None:
        """None when there is nothing to compute. Who came in this step may have been preempted in it, and its adapter
        evicted: what has no pages by now is not uploaded."""
        uploads = tuple(adapter for adapter in dict.fromkeys(self.uploads) if adapter.resident)
        return Batch(order_rows(self.rows.values()), uploads, tuple(self.preempted)) if self.rows else None


def order_rows(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Decodes before prefill chunks; inside each, base rows first, then by layout, adapter and arrival."""
    return tuple(sorted(rows, key=_order))


def _order(row: Row) -> tuple[bool, int, int, int]:
    adapter = row.sequence.adapter
    layout, handle = (adapter.layout, adapter.handle) if adapter else (-2, -1)
    return (not row.decodes, layout, handle, row.sequence.arrival)
