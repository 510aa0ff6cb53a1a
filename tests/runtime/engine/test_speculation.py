"""With guesses at further tokens every request gets the tokens that it gets without them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.constraints.constraint import Constraint
from lorafleet_runtime.core.drafts import Drafter
from lorafleet_runtime.core.sequence import Sequence as Run
from lorafleet_runtime.core.speculation import Speculation
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.report import deltas_of
from lorafleet_runtime.engine.sampling.sampler import Sampled
from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.protocol import AddRequest, Sampling
from tests.runtime.engine.traffic import End, Outcome, load, requests, serve


class Foresight(Drafter):
    """Knows what will be said, and errs now and then: so guesses are right, wrong, and right up to somewhere."""

    def __init__(self, prompt_len: int, said: Sequence[int], rng: random.Random) -> None:
        super().__init__(prompt_len)
        self._start = prompt_len
        self._said = said
        self._rng = rng

    def propose(self, tokens: Sequence[int], most: int, least: float = 0.0) -> list[int]:
        at = len(tokens) - self._start
        right = [*self._said[at : at + most], *(self._rng.randrange(256) for _ in range(most))]
        return [token if self._rng.random() < 0.8 else self._rng.randrange(256) for token in right[:most]]

    def expected(self, most: int) -> float:
        return self._rng.choice((0.0, 3.0))


class Foreseen(Speculation):
    """By request, what it got from plain decoding."""

    def __init__(self, most: int, plain: dict[str, Outcome], seed: int) -> None:
        super().__init__(most)
        self._plain = plain
        self._rng = random.Random(seed)

    def join(self, sequence: Run) -> None:
        said = [token for token in self._plain[sequence.request_id] if isinstance(token, int)]
        sequence.drafter = Foresight(sequence.prompt_len, said, self._rng)


def foresee(engine: Engine, most: int, plain: dict[str, Outcome], seed: int) -> Speculation:
    engine._scheduler.speculation = Foreseen(most, plain, seed)
    return engine._scheduler.speculation


def longer(asked: list[AddRequest], length: int) -> list[AddRequest]:
    """The same without ends of their own, so that all are there at once."""
    return [
        msgspec.structs.replace(
            request, sampling=msgspec.structs.replace(request.sampling, max_tokens=length, stop_token_ids=())
        )
        for request in asked
    ]


def repeating(count: int) -> list[AddRequest]:
    """Answers that say one thing over and over."""
    says = [Sampling(max_tokens=60, temperature=0, logit_bias={i: 1000.0}) for i in range(count)]
    return [AddRequest(str(i), [5 + i, 9, 7 + i], sampling) for i, sampling in enumerate(says)]


@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize("seed", range(4))
def test_requests_of_every_kind_get_the_same_tokens(
    make: Callable[..., Engine], tmp_path: Path, seed: int, overlap: str
) -> None:
    asked = requests(40, seed)
    plain_engine, engine = make(400), make(400, overlap=overlap)
    load(plain_engine, tmp_path / "plain")
    load(engine, tmp_path / "foreseen")
    plain = serve(plain_engine, asked)
    speculation = foresee(engine, 1 + 5 * seed, plain, seed)

    assert serve(engine, asked) == plain
    assert 0 < speculation.accepted < speculation.drafted


@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize("seed", range(3))
def test_in_a_tiny_pool_sequences_are_preempted_and_get_the_same_tokens(
    make: Callable[..., Engine], tmp_path: Path, seed: int, overlap: str
) -> None:
    asked = longer(requests(24, 7 + seed), 40)
    plain_engine, engine = make(400), make(24, overlap=overlap)
    load(plain_engine, tmp_path / "plain")
    load(engine, tmp_path / "tiny")
    plain = serve(plain_engine, asked)
    speculation = foresee(engine, 6, plain, seed)

    assert serve(engine, asked) == plain
    assert engine._scheduler.preemptions > 3
    assert 0 < speculation.accepted < speculation.drafted


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_who_leaves_while_a_step_runs_gets_nothing_more_and_the_others_all_of_theirs(
    make: Callable[..., Engine], tmp_path: Path, overlap: str
) -> None:
    asked = longer(requests(30, 3), 30)
    plain_engine, engine = make(400), make(400, overlap=overlap)
    load(plain_engine, tmp_path / "plain")
    load(engine, tmp_path / "foreseen")
    plain = serve(plain_engine, asked)
    foresee(engine, 8, plain, 1)

    left = serve(engine, asked, {step: str(step) for step in range(2, 12)})

    gone = {key for key in plain if key not in left or not isinstance(left[key][-1], End)}
    assert gone
    assert all(left[key] == plain[key] for key in plain.keys() - gone)
    assert all(left.get(key, []) == plain[key][: len(left.get(key, []))] for key in gone)


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_text_that_repeats_itself_needs_fewer_steps(make: Callable[..., Engine], overlap: str) -> None:
    asked = repeating(6)
    plain_engine, engine = make(400, overlap=overlap), make(400, overlap=overlap, speculate=8)
    assert serve(engine, asked) == serve(plain_engine, asked)

    counters, plain = engine.state().counters, plain_engine.state().counters
    assert counters.accepted_tokens > 100
    assert counters.accepted_tokens <= counters.draft_tokens
    assert counters.drafts < counters.accepted_tokens
    assert counters.generation_tokens == plain.generation_tokens == 6 * 60
    assert 2 * counters.steps < plain.steps
    assert plain.draft_tokens == 0


def test_text_that_repeats_nothing_is_hardly_guessed_at(make: Callable[..., Engine]) -> None:
    engine = make(400, speculate=8)
    drawn = [
        AddRequest(str(i), [(31 * i + 7 * j) % 256 for j in range(20)], Sampling(max_tokens=80, temperature=5, seed=i))
        for i in range(8)
    ]
    serve(engine, drawn)
    counters = engine.state().counters
    assert counters.generation_tokens == 640
    assert counters.draft_tokens < 64


def test_a_token_that_cannot_be_sampled_ends_a_request_after_those_before_it() -> None:
    sequence = Run("r", [1, 2, 8, 9, -1], 2, Sampling(max_tokens=9, logprobs=0), None)
    tokens, error = deltas_of(sequence, [Sampled(8, -0.5), Sampled(9, -0.25), Sampled(-1)])
    assert (tokens.token_ids, [each.logprob for each in tokens.logprobs]) == ([8, 9], [-0.5, -0.25])
    assert (tokens.finish_reason, error.finish_reason, error.token_ids) == (None, "error", [])
    assert "at token 2" in error.error
    assert [delta.finish_reason for delta in deltas_of(sequence, [Sampled(-1)])] == ["error"]


def test_constrained_requests_have_no_guesses() -> None:
    speculation = Speculation(4)
    free, bound = (
        Run("r", [1, 2], 2, Sampling(max_tokens=4, constraint=constraint), None)
        for constraint in (None, Constraint("regex", "a+"))
    )
    for sequence in (free, bound):
        speculation.join(sequence)
    assert free.drafter is not None
    assert bound.drafter is None


@pytest.mark.parametrize("count", [-1, 17])
def test_more_guesses_than_a_row_may_have_are_refused(count: int) -> None:
    config = EngineConfig("", "m", speculate=16).check()
    with pytest.raises(ConfigError, match=f"--speculate {count} must be in 0..16"):
        replace(config, speculate=count).check()
