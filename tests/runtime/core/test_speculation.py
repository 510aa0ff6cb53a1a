"""Guesses in a step: never at anybody's expense, and nothing is left of those that were wrong."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.soak_device import TaggedDevice
from lorafleet_runtime.core.batch import Batch, Row
from lorafleet_runtime.core.invariants import leaks, violations
from lorafleet_runtime.core.limits import Limits
from lorafleet_runtime.core.pages import PAGE_TOKENS
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.scheduler import Scheduler
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.core.speculation import accepted
from lorafleet_runtime.protocol import Sampling

CONTEXT = 96


def counts(context: list[int]) -> int:
    """A model that repeats itself."""
    return (context[-1] + 1) % 5


def errs(context: list[int]) -> int:
    """One that mostly does: what it says depends on more tokens than guesses look at."""
    last = hash(tuple(context[-6:]))
    return last // 5 % 11 if last % 5 == 0 else counts(context)


class Serving:
    """A scheduler with up to so many guesses a row, and a device that notices whose KV is read."""

    def __init__(
        self, drafts: int, pages: int = 64, budget: int = 64, seqs: int = 8, says: Callable[[list[int]], int] = counts
    ) -> None:
        self.says = says
        self.room = Room(pages, CONTEXT)
        self.scheduler = Scheduler(self.room, Limits(CONTEXT, seqs, budget, drafts))
        self.device = TaggedDevice()
        self.steps = 0
        self.most_at_once = 1
        self.foresight = 0  # of each output fewer tokens than that are told beforehand
        self._under_way: deque[Batch] = deque()

    def add(self, name: str, prompt: list[int], max_tokens: int = 20, stop: tuple[int, ...] = ()) -> Sequence:
        sampling = Sampling(max_tokens=max_tokens, stop_token_ids=stop)
        sequence = Sequence(name, list(prompt), len(prompt), sampling, None, name[0])
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> Batch | None:
        """Schedule and run; commit the oldest step when there are as many as may be."""
        batch = self.scheduler.schedule(self._foreseen())
        if batch is not None:
            self.steps += 1
            self._under_way.append(batch)
            if self.most_at_once == 1:  # else tokens are not known yet
                self.device.run(batch)
        if self._under_way and (batch is None or len(self._under_way) == self.most_at_once):
            oldest = self._under_way.popleft()
            self.scheduler.commit(oldest, self._sample(oldest))
        assert violations(self.room, self.scheduler) + self.device.problems == []
        return batch

    def run(self) -> None:
        for _ in range(3000):
            if not self.scheduler.has_work and not self._under_way:
                assert leaks(self.room, self.scheduler) == []
                return
            self.step()
        raise AssertionError("still busy")

    def _foreseen(self) -> dict[str, list[int]]:
        known = {}
        for sequence in self.scheduler._by_id.values() if self.foresight else ():
            run: list[int] = []
            for _ in range((len(sequence.tokens) * 7 + sequence.arrival) % self.foresight):
                run.append(self.says([*sequence.tokens, *run]))
            known[sequence.request_id] = [*sequence.output_tokens, *run]
        return known

    def _sample(self, batch: Batch) -> list[int]:
        tokens = []
        for row in batch.sampling:
            context = [*row.sequence.tokens[: row.end], *row.drafts]
            tokens += [self.says(context[:end]) for end in range(row.end, row.end + row.sampled)]
        return tokens


@dataclass(frozen=True)
class End:
    tokens: list[int]
    reason: str | None
    charged: int


def outcomes(
    seed: int, drafts: int, most_at_once: int = 1, foresight: int = 0
) -> tuple[dict[str, End], Serving]:
    rng = random.Random(seed)
    pages, budget, seqs = rng.choice((12, 20, 64)), rng.choice((12, 24, 64)), rng.choice((3, 8))
    serving = Serving(drafts, pages, budget, seqs, errs)
    serving.most_at_once, serving.foresight = most_at_once, foresight
    made = []
    for i in range(12):
        prompt = [rng.randrange(5) for _ in range(rng.randint(1, 40))]
        stop = tuple(rng.sample(range(11), rng.choice((0, 0, 1))))
        made.append(serving.add(f"{'ab'[i % 2]}{i}", prompt, rng.randint(1, 50), stop))
    serving.run()
    return {s.request_id: End(s.tokens, s.finish_reason, s.charged) for s in made}, serving


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 16))
def test_tokens_ends_and_charges_are_those_of_plain_decoding(seed: int, drafts: int) -> None:
    plain, without = outcomes(seed, 0)
    guessed, serving = outcomes(seed, drafts)
    assert guessed == plain
    assert serving.scheduler.queue.tallies["a"].service == without.scheduler.queue.tallies["a"].service
    assert serving.scheduler.queue.tallies["a"].output_tokens == without.scheduler.queue.tallies["a"].output_tokens


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 40))
def test_what_must_come_saves_steps_and_changes_nothing_else(seed: int, foresight: int) -> None:
    plain, without = outcomes(seed, 0)
    foreseen, serving = outcomes(seed, 0, foresight=foresight)
    assert foreseen == plain
    assert serving.scheduler.queue.tallies["a"].service == without.scheduler.queue.tallies["a"].service
    assert serving.scheduler.speculation.foreseen > 0
    assert serving.scheduler.speculation.drafted == 0


@pytest.mark.parametrize("most_at_once", [1, 2])
def test_guesses_are_right_and_wrong_and_save_steps(most_at_once: int) -> None:
    steps, right, wrong, preemptions = 0, 0, 0, 0
    for seed in range(12):
        plain, without = outcomes(seed, 0)
        guessed, serving = outcomes(seed, 8, most_at_once)
        assert {name: end.tokens for name, end in guessed.items()} == {name: end.tokens for name, end in plain.items()}
        steps += without.steps - serving.steps
        right += serving.scheduler.speculation.accepted
        wrong += serving.scheduler.speculation.drafted - serving.scheduler.speculation.accepted
        preemptions += serving.scheduler.preemptions
    assert min(right, wrong, preemptions) > 0
    assert steps > 0


def repeating(serving: Serving, name: str = "repeats", *, length: int = 22, max_tokens: int = 40) -> Sequence:
    """A sequence that has its first token of output, and more than enough reason to guess."""
    sequence = serving.add(name, [1, 2, 3, 4, 0] * (length // 5 + 1), max_tokens)
    serving.step()
    assert sequence.drafter is not None
    sequence.drafter.chances = dict.fromkeys(sequence.drafter.chances, 1.0)
    return sequence


def row_of(batch: Batch | None, sequence: Sequence) -> Row:
    assert batch is not None
    return next(row for row in batch.rows if row.sequence is sequence)


def test_guesses_get_what_prompts_leave_of_a_step() -> None:
    serving = Serving(8, budget=40)
    sequence = repeating(serving)
    assert len(row_of(serving.step(), sequence).drafts) == 8
    serving.add("prompt", list(range(20, 54)))
    assert len(row_of(serving.step(), sequence).drafts) == 40 - 1 - 34
    serving.add("long prompt", list(range(100, 150)))
    row = row_of(serving.step(), sequence)
    assert row.drafts == ()
    assert sequence.finish_reason is None


def test_guesses_get_pages_that_are_free_beyond_one_for_each_who_runs() -> None:
    serving = Serving(16, pages=6)
    sequence = repeating(serving, length=25, max_tokens=60)
    taken = serving.room.pool.allocate(serving.room.pool.free)
    batch = serving.scheduler.schedule()
    assert len(row_of(batch, sequence).drafts) == 2 * PAGE_TOKENS - len(sequence.tokens[:-1])
    assert batch is not None
    serving.scheduler.commit(batch, [0] * row_of(batch, sequence).sampled)
    serving.room.pool.release(taken)


def test_the_last_tokens_that_may_be_made_are_not_guessed_at() -> None:
    serving = Serving(8)
    sequence = repeating(serving, max_tokens=4)
    batch = serving.step()
    assert len(row_of(batch, sequence).drafts) == 2
    assert sequence.output_len <= 4


def test_who_is_aborted_while_a_row_with_guesses_runs_leaves_nothing() -> None:
    serving = Serving(8)
    sequence = repeating(serving)
    batch = serving.scheduler.schedule()
    assert batch is not None
    assert row_of(batch, sequence).drafts
    serving.scheduler.abort("repeats")
    assert serving.scheduler.commit(batch, [0] * row_of(batch, sequence).sampled) == []
    assert leaks(serving.room, serving.scheduler) == []


@pytest.mark.parametrize(("drafts", "sampled", "made"), [
    ((), [5], [5]),
    ((5, 6), [5, 6, 7], [5, 6, 7]),
    ((5, 6), [5, 9, 7], [5, 9]),
    ((5, 6), [8, 6, 7], [8]),
    ((5, 6), [5, -1, 7], [5, -1]),  # logits after a right guess are not finite
    ((5, 6), [8, -1, -1], [8]),  # or after a wrong one
    ((), [], []),  # a chunk of a prompt
])  # fmt: skip
def test_what_was_sampled_counts_up_to_the_first_after_a_wrong_guess(
    drafts: tuple[int, ...], sampled: list[int], made: list[int]
) -> None:
    assert accepted(drafts, sampled) == made
