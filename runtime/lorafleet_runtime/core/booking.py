"""What a step does to its sequences: what is certain when it is scheduled, and the tokens when they are there."""

from __future__ import annotations

from lorafleet_runtime.core.batch import Batch, Row
from lorafleet_runtime.core.sequence import UNKNOWN, FinishReason, finish_reason_after


def expect(batch: Batch) -> None:
    """A batch is going to run: its tokens count as computed, and where the next ones will stand is known."""
    for row in batch.rows:
        row.sequence.computed = row.end
        row.sequence.drafted = len(row.drafts)
        if row.samples:
            row.sequence.tokens.append(UNKNOWN)


def append(row: Row, made: list[int], max_model_len: int) -> FinishReason | None:
    """Put tokens in the place of UNKNOWN. Returns why the sequence ends with one of them: then the tokens after it are
    gone from both, what the next step samples as well."""
    sequence = row.sequence
    sequence.tokens[row.end : row.end + 1] = made
    reason: FinishReason | None = None
    for count in range(1, len(made) + 1):
        reason = finish_reason_after(sequence, row.end + count, max_model_len)
        if reason is not None:
            del made[count:], sequence.tokens[row.end + count :]
            break
    if row.drafts and sequence.pages:  # else it was preempted, and all is computed again
        sequence.computed += len(made) - 1
    return reason
