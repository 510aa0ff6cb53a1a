"""Speculation: a sequence that decodes may have guesses at its next tokens computed in the same step. Where a
constraint leaves one token alone, time after time, these are known, and no guess.

What is sampled after each guess is what plain decoding samples there, as long as all guesses before it were right; the
first that differs is plain decoding's next token. So tokens are the same, whatever is asked of them. [Leviathan et al.
2023, for guesses without a probability]. KV of wrong guesses lies beyond `computed`, and is written over."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Values
from dataclasses import replace
from types import MappingProxyType

from lorafleet_runtime.core.batch import Row, Step
from lorafleet_runtime.core.drafts import Drafter, worth
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.sequence import UNKNOWN, Sequence

MOST_DRAFTS = 16
NOTHING: Mapping[str, Values[int]] = MappingProxyType({})


class Speculation:
    """At most `most` guesses a row; 0: none at all."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.rows = 0  # that had guesses, of steps that ran
        self.drafted = 0
        self.accepted = 0
        self.foreseen = 0  # tokens that cost no step of their own, as they had to come
        self._left_over = True  # the last step had budget for guesses

    def join(self, sequence: Sequence) -> None:
        """A new sequence. Nothing is guessed under a constraint: what it allows after a guess is not known yet."""
        if self.most and sequence.sampling.constraint is None:
            sequence.drafter = Drafter(sequence.prompt_len)

    def waits(self, sequence: Sequence) -> bool:
        """Whether a sequence sits a step out until its last token is known: because it may become several tokens, or
        because guesses after it promise more than the one token that the step would make."""
        if sequence.drafted:
            return True
        return sequence.drafter is not None and self._left_over and sequence.drafter.expected(self.most) > 1

    def draft(
        self, step: Step, room: Room, max_model_len: int, running: int, foreseen: Mapping[str, Values[int]] = NOTHING
    ) -> None:
        """Give guesses what a step has left: tokens of its budget, and pages that are free beyond one for each running
        sequence. Nobody is evicted, preempted or held up for a guess. `foreseen`: by request, of those that have a
        constraint, the output with the tokens that must come next."""
        if not self.most and not foreseen:
            return
        self._left_over = step.budget > 0
        tokens = sum(row.count for row in step.rows.values())
        for row in list(step.rows.values()):
            sequence = row.sequence
            if not row.decodes or not row.samples or sequence.tokens[-1] == UNKNOWN:
                continue
            # The last token that may be made is sampled, never guessed.
            length = len(sequence.tokens)
            left = min(sequence.sampling.max_tokens - sequence.output_len, max_model_len - length) - 1
            if sequence.drafter is not None:
                drafts = sequence.drafter.propose(sequence.tokens, min(self.most, step.budget, left), worth(tokens))
            else:
                known = foreseen.get(sequence.request_id, ())
                drafts = list(known[sequence.output_len :][: max(min(MOST_DRAFTS, step.budget, left), 0)])
            if drafts:
                fitting = room.extend_freely(sequence, 1 + len(drafts), running) - 1
                step.widen(replace(row, drafts=tuple(drafts[:fitting])))
                tokens += fitting

    def land(self, row: Row, made: int) -> None:
        """A row ran, and its sequence has so many tokens more."""
        sequence = row.sequence
        if row.drafts:
            sequence.drafted = 0
            if sequence.drafter is None:
                self.foreseen += made - 1
            else:
                self.rows += 1
                self.drafted += len(row.drafts)
                self.accepted += made - 1
        if sequence.drafter is not None:
            sequence.drafter.read(sequence.tokens, row.end + made)


def accepted(drafts: Values[int], sampled: Values[int]) -> list[int]:
    """The tokens that plain decoding would have sampled, of those sampled after the row's last token and after each of
    its drafts: up to the first after a draft that was wrong."""
    right = 0
    while right < len(drafts) and drafts[right] == sampled[right]:
        right += 1
    return list(sampled[: right + 1])
