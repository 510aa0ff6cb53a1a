"""A batch as plain values that stay what they are while the batch runs, and mean the same in another process.

Sequences and adapters go on changing while a step runs: the next one is being scheduled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from lorafleet_kernels.batch import AttentionBatch
from lorafleet_runtime.core.batch import Batch, Row
from lorafleet_runtime.core.pages import pages_for_tokens
from lorafleet_runtime.core.sequence import UNKNOWN
from lorafleet_runtime.engine.sampling.penalties import Row as SamplingRow
from lorafleet_runtime.engine.sampling.penalties import reads_tokens
from lorafleet_runtime.model.lora import PackedAdapter

BASE = -1
"""In place of an adapter's handle."""


class PlannedRow(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of one sequence from position `start`; `adapter` is a handle, or BASE. With a `source`, the last token is
    the `source`-th of those that the step before sampled. The last `drafts` tokens are guesses: what follows the last
    token before them, and each of them, is sampled."""

    start: int
    tokens: list[int]
    samples: bool
    adapter: int
    pages: list[int]
    source: int = -1
    drafts: int = 0

    @property
    def decodes(self) -> bool:
        return len(self.tokens) - self.drafts == 1

    @property
    def sampled(self) -> int:
        """How many tokens are sampled for it."""
        return self.samples + self.drafts


class RunStep(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """One batch. First the adapters `unplaced` lose their pages, then `uploads`, handles with pages, get theirs."""

    rows: list[PlannedRow]
    uploads: list[tuple[int, list[int]]]
    unplaced: list[int]

    @property
    def decodes(self) -> int:
        """How many leading tokens are of rows that decode."""
        return sum(len(row.tokens) for row in self.rows if row.decodes)


@dataclass(frozen=True, slots=True)
class Plan:
    """`weights` of the step's uploads, in their order; `sampling`: what each token to sample asks for; `constrained`:
    request ids, with the output so far, of those whose next token is constrained."""

    step: RunStep
    weights: tuple[PackedAdapter, ...]
    sampling: tuple[SamplingRow, ...] = ()
    constrained: tuple[tuple[str, list[int]], ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """Flat token positions `begin .. end` of the batch that share an adapter, or BASE."""

    begin: int
    end: int
    adapter: int


def planned_rows(batch: Batch, before: Batch | None) -> list[PlannedRow]:
    """`before` has been planned and not committed: its samples are sources."""
    sources: dict[str, int] = {}
    at = 0
    for row in before.sampling if before else ():
        sources[row.sequence.request_id] = at
        at += row.sampled
    return [_planned(row, sources) for row in batch.rows]


def _planned(row: Row, sources: dict[str, int]) -> PlannedRow:
    sequence = row.sequence
    tokens = sequence.tokens[row.start : row.end]
    source = sources[sequence.request_id] if tokens[-1] == UNKNOWN else -1
    handle = sequence.adapter.handle if sequence.adapter else BASE
    pages = sequence.pages[: pages_for_tokens(row.end + len(row.drafts))]
    return PlannedRow(row.start, [*tokens, *row.drafts], row.samples, handle, pages, source, len(row.drafts))


def sampling_rows(batch: Batch) -> tuple[SamplingRow, ...]:
    """What each token to sample asks for; with tokens only where they matter."""
    return tuple(_sampling_row(row, drafts) for row in batch.sampling for drafts in range(row.sampled))


def _sampling_row(row: Row, drafts: int) -> SamplingRow:
    """Of the token after the first `drafts` drafts, as if they had been sampled."""
    sequence = row.sequence
    reads = reads_tokens(sequence.sampling)
    return SamplingRow(
        sampling=sequence.sampling,
        position=row.end + drafts - sequence.prompt_len,
        prompt_token_ids=sequence.tokens[: sequence.prompt_len] if reads else (),
        output_token_ids=[*sequence.output_tokens, *row.drafts[:drafts]] if reads else (),
        request_id=sequence.request_id,
    )


def sampled_positions(rows: Iterable[PlannedRow]) -> list[int]:
    """After which of the batch's flat tokens one is sampled."""
    found: list[int] = []
    end = 0
    for row in rows:
        end += len(row.tokens)
        found += range(end - row.sampled, end)
    return found


def attention_batch(step: RunStep) -> AttentionBatch:
    """The step for attention. A guess is a sequence of its own, with the pages of the one that it continues: it is
    computed in the way of any token that decodes, so that the same numbers come out."""
    positions: list[int] = []
    counts: list[int] = []
    pages: list[list[int]] = []
    for row in step.rows:
        positions += range(row.start, row.start + len(row.tokens))
        if row.drafts:
            counts += [1] * len(row.tokens)
            ends = range(row.start + 1, row.start + 1 + len(row.tokens))
            pages += (row.pages[: pages_for_tokens(end)] for end in ends)
        else:
            counts.append(len(row.tokens))
            pages.append(row.pages)
    return AttentionBatch(positions, counts, pages, step.decodes)


def segments(rows: Iterable[PlannedRow]) -> tuple[Segment, ...]:
    """Maximal slices of the flat batch with one adapter. Built once per step."""
    found: list[Segment] = []
    position = 0
    for row in rows:
        end = position + len(row.tokens)
        if found and found[-1].adapter == row.adapter:
            found[-1] = Segment(found[-1].begin, end, row.adapter)
        else:
            found.append(Segment(position, end, row.adapter))
        position = end
    return tuple(found)


def flat_tokens(rows: Sequence[PlannedRow], sampled: Sequence[int]) -> list[int]:
    """The batch's tokens, with those that the step before sampled. What could not be sampled is any token: the request
    has ended with an error by the time that this is known."""
    tokens: list[int] = []
    for row in rows:
        tokens += row.tokens
        if row.source >= 0:
            tokens[-1] = max(sampled[row.source], 0)
    return tokens
