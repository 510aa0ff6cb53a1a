"""Sampling against slow formulas written row by row, and what a seed promises."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lorafleet_runtime.engine.sampling.philox import philox4x32, uniforms
from lorafleet_runtime.engine.sampling.sampler import Row, Sampled, sample
from lorafleet_runtime.protocol import Sampling

VOCABULARY = 97


def row(
    position: int = 0, prompt: Sequence[int] = (), output: Sequence[int] = (), allowed: bytes | None = None,
    **fields: Any,
) -> Row:  # fmt: skip
    return Row(Sampling(max_tokens=64, **fields), position, prompt, output, allowed)


def bits(tokens: Sequence[int], count: int = VOCABULARY) -> bytes:
    """A mask that allows these tokens."""
    return bytes(sum(1 << token % 8 for token in tokens if token // 8 == byte) for byte in range(-(-count // 8)))


def random_logits(rows: int, seed: int, spread: float = 3.0, vocabulary: int = VOCABULARY) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def naive_adjusted(logits: Tensor, r: Row) -> NDArray[np.float64]:
    """One row's logits after biases and penalties, by the formulas of vLLM's documentation."""
    s = r.sampling
    x = logits.double().numpy().copy()
    for token, bias in s.logit_bias.items():
        x[token] += bias
    if r.position < s.min_tokens:
        x[list(s.stop_token_ids)] = -math.inf
    for token in {*r.prompt_token_ids, *r.output_token_ids}:
        x[token] = x[token] / s.repetition_penalty if x[token] > 0 else x[token] * s.repetition_penalty
    for token in set(r.output_token_ids):
        x[token] -= s.frequency_penalty * list(r.output_token_ids).count(token) + s.presence_penalty
    if r.allowed is not None:
        for token in range(len(x)):
            if token >= 8 * len(r.allowed) or not r.allowed[token // 8] >> token % 8 & 1:
                x[token] = -math.inf
    return x


def naive_probabilities(x: NDArray[np.float64], s: Sampling) -> NDArray[np.float64]:
    """Temperature, min_p, top_k and top_p, one token at a time; equals of the last one kept are kept."""
    x = x / s.temperature
    p = np.exp(x - x.max())
    p[p < s.min_p * p.max()] = 0.0
    if s.top_k > 0:
        p[x < sorted(x, reverse=True)[min(s.top_k, len(x)) - 1]] = 0.0
    p /= p.sum()
    if s.top_p < 1.0:
        mass, lowest = 0.0, math.inf
        for token in np.argsort(-p, kind="stable"):
            if mass >= s.top_p and lowest < math.inf:
                break
            mass, lowest = mass + p[token], x[token]
        p[x < lowest] = 0.0
    return np.asarray(p / p.sum())


def assert_is_naive_choice(logits: Tensor, r: Row, got: Sampled) -> None:
    """The token whose interval of the distribution function, in the order of ids, holds the row's number."""
    x = naive_adjusted(logits, r)
    if r.sampling.temperature == 0.0:
        assert x[got.token_id] == pytest.approx(x.max(), abs=1e-5)
        return
    p = naive_probabilities(x, r.sampling)
    ends = p.cumsum()
    u = float(uniforms([r.sampling.seed], [r.position])[0])
    # A number within float32's rounding of an edge may fall to either side of it.
    assert ends[got.token_id] - p[got.token_id] - 2e-6 <= u <= ends[got.token_id] + 2e-6
    assert p[got.token_id] > 0


tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=12)
samplings = st.builds(
    Sampling,
    max_tokens=st.just(64),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_p=st.sampled_from([1.0, 0.95, 0.6, 0.1]),
    top_k=st.sampled_from([0, 1, 3, 40, 500]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    presence_penalty=st.sampled_from([0.0, 0.7, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    seed=st.integers(0, 2**64 - 1),
    logit_bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-9.0, 9.0, width=32), max_size=3),
    stop_token_ids=tokens.map(tuple),
    min_tokens=st.integers(0, 4),
)
masks = st.none() | st.sets(st.integers(0, VOCABULARY - 1), min_size=20).map(lambda found: bits(sorted(found)))
rows_strategy = st.builds(
    Row, sampling=samplings, position=st.integers(0, 5), prompt_token_ids=tokens, output_token_ids=tokens, allowed=masks
)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_words_that_its_authors_published(
    counter: list[int], key: list[int], words: list[int]
) -> None:
    got = philox4x32(np.array([counter], dtype=np.uint64), np.array([key], dtype=np.uint64))

    assert got[0].tolist() == words


def test_uniforms_are_uniform_and_depend_on_seed_and_position_alone() -> None:
    one_seed = uniforms([7] * 4000, range(4000))
    one_position = uniforms([s << 32 for s in range(4000)], [3] * 4000)

    for numbers in (one_seed, one_position):
        counts = np.histogram(numbers, bins=20, range=(0.0, 1.0))[0]
        assert ((counts - 200) ** 2 / 200).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
        assert len(set(numbers.tolist())) == 4000
    assert abs(np.corrcoef(one_seed[1:], one_seed[:-1])[0, 1]) < 0.05
    assert uniforms([9, 7], [1, 3999])[1] == one_seed[3999]
    assert uniforms([-1], [0]) == uniforms([2**64 - 1], [0])


@settings(max_examples=150)
@given(st.lists(rows_strategy, min_size=1, max_size=5), st.integers(0, 2**32), st.sampled_from([0.2, 3.0]))
def test_every_row_gets_the_token_of_the_slow_formula(rows: list[Row], seed: int, spread: float) -> None:
    logits = random_logits(len(rows), seed, spread)
    before = logits.clone()
    got = sample(logits, rows)

    assert torch.equal(logits, before)
    for index, r in enumerate(rows):
        assert_is_naive_choice(logits[index], r, got[index])


@settings(max_examples=60)
@given(st.lists(rows_strategy, min_size=2, max_size=6), st.integers(0, 2**32), st.randoms())
def test_a_row_gets_the_same_token_in_any_batch(rows: list[Row], seed: int, random: Any) -> None:
    logits = random_logits(len(rows), seed)
    together = sample(logits, rows)
    order = random.sample(range(len(rows)), random.randint(1, len(rows)))
    some = sample(logits[order], [rows[i] for i in order])

    assert some == [together[i] for i in order]


@pytest.mark.parametrize("spread", [0.01, 4.0, 12.0])
@pytest.mark.parametrize(
    "fields",
    [
        {"top_p": 0.9},
        {"top_p": 0.999},
        {"top_k": 50},
        {"top_k": 700, "top_p": 0.5},
        {"top_k": 20000},
        {"min_p": 0.01, "top_p": 0.7},
        {"top_p": 0.0},
    ],
    ids=str,
)
def test_filters_over_a_wide_vocabulary_keep_what_the_slow_formula_keeps(fields: dict[str, Any], spread: float) -> None:
    """Spreads from flat to peaked, so that a few hundred, some thousand and all tokens decide."""
    logits = random_logits(6, 5, spread, vocabulary=20011)
    rows = [row(position, seed=11, **fields) for position in range(6)]

    for index, got in enumerate(sample(logits, rows)):
        assert_is_naive_choice(logits[index], rows[index], got)


def test_sampled_frequencies_are_the_probabilities() -> None:
    logits = random_logits(1, 3, spread=1.0, vocabulary=12).expand(20000, -1)
    rows = [row(position, seed=42, temperature=0.8) for position in range(20000)]
    expected = (logits[0].double() / 0.8).softmax(-1).numpy() * 20000
    counts = np.bincount([s.token_id for s in sample(logits, rows)], minlength=12)

    assert ((counts - expected) ** 2 / expected).sum() < 31.3  # chi-square, 11 degrees of freedom, p = 0.001


@pytest.mark.parametrize("fields", [{}, {"top_k": 4}, {"min_p": 0.5}], ids=str)
def test_the_first_and_last_tokens_of_the_vocabulary_and_of_its_blocks_are_drawn(fields: dict[str, Any]) -> None:
    edges = [0, 255, 256, 999]
    logits = torch.full((400, 1000), -60.0)
    logits[:, edges] = 1.0
    got = [s.token_id for s in sample(logits, [row(position, seed=2, **fields) for position in range(400)])]

    assert sorted(set(got)) == edges
    assert min(got.count(token) for token in edges) > 60


def test_another_position_or_seed_gives_another_draw() -> None:
    logits = torch.zeros(200, 1000)
    by_position = {s.token_id for s in sample(logits, [row(position, seed=5) for position in range(200)])}
    by_seed = {s.token_id for s in sample(logits, [row(0, seed=seed) for seed in range(200)])}

    assert len(by_position) > 150
    assert len(by_seed) > 150


def test_rounding_of_logits_hardly_moves_draws_as_it_would_in_the_order_of_probabilities() -> None:
    logits = random_logits(2000, 8, spread=0.5, vocabulary=64).round(decimals=1)
    rounded = logits + random_logits(2000, 9, spread=1e-6, vocabulary=64)
    rows = [row(position, seed=1) for position in range(2000)]
    moved = sum(a != b for a, b in zip(sample(logits, rows), sample(rounded, rows), strict=True))
    u = torch.from_numpy(uniforms([1] * 2000, range(2000))).unsqueeze(1)

    def by_probability(logits: Tensor) -> Tensor:
        p, ids = logits.double().softmax(-1).sort(descending=True, stable=True)
        return ids.gather(1, torch.searchsorted(p.cumsum(-1), u).clamp(max=63))

    assert moved <= 2
    assert int((by_probability(logits) != by_probability(rounded)).sum()) > 200


@pytest.mark.parametrize("temperature", [0.0, 1e-7])
def test_greedy_takes_the_lowest_id_among_equals(temperature: float) -> None:
    logits = torch.zeros(3, 300)
    logits[0, [7, 250]] = 2.0
    logits[1, [255, 256]] = 2.0

    assert [s.token_id for s in sample(logits, [row(temperature=temperature)] * 3)] == [7, 255, 0]


def test_end_tokens_wait_for_min_tokens_and_then_come() -> None:
    logits = torch.zeros(1, 10)
    logits[0, 4] = 5.0
    logits[0, 6] = 1.0

    def at(position: int) -> int:
        fields: dict[str, Any] = {"temperature": 0.0, "stop_token_ids": (4,), "min_tokens": 2}
        return sample(logits, [row(position, **fields)])[0].token_id

    assert [at(0), at(1), at(2)] == [6, 6, 4]


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.0}, {"seed": 4}, {"top_k": 1}, {"top_p": 0.1}, {"logit_bias": {9: 100.0}}], ids=str
)
def test_the_only_token_that_is_allowed_is_chosen_and_its_logprob_is_still_the_models(fields: dict[str, Any]) -> None:
    logits = random_logits(2, 21, vocabulary=1000)
    logits[0, 700] = -50.0
    chosen, free = sample(logits, [row(allowed=bits([700], 1000), logprobs=1, **fields), row(logprobs=1, **fields)])

    assert chosen.token_id == 700
    assert chosen.logprob == pytest.approx(float(logits[0].log_softmax(-1)[700]), abs=1e-4)
    assert free == sample(logits[1:], [row(logprobs=1, **fields)])[0]


def test_tokens_beyond_the_end_of_a_mask_are_not_allowed() -> None:
    logits = torch.zeros(1, 300)
    logits[0, 290] = 9.0

    assert sample(logits, [row(temperature=0.0, allowed=bits([3, 40], 48))])[0].token_id == 3


def test_a_mask_may_be_longer_than_the_vocabulary() -> None:
    logits = torch.zeros(1, 10)

    assert sample(logits, [row(temperature=0.0, allowed=bits([7, 31], 32))])[0].token_id == 7


def test_ids_outside_the_vocabulary_change_nothing() -> None:
    logits = random_logits(1, 4)
    strange = row(
        temperature=0.0, logit_bias={VOCABULARY: 99.0, -1: 99.0}, stop_token_ids=(10**6,), min_tokens=5,
        repetition_penalty=1.5, prompt=(-3, 10**6), output=(10**6,),
    )  # fmt: skip

    assert sample(logits, [strange]) == sample(logits, [row(temperature=0.0)])


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {"seed": 3}, {"top_k": 5, "top_p": 0.5}], ids=str)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_row_that_overflowed_is_named_and_spares_the_others(fields: dict[str, Any], poison: float) -> None:
    logits = random_logits(3, 6, vocabulary=1000)
    rows = [row(position, logprobs=2, **fields) for position in range(3)]
    healthy = sample(logits, rows)
    logits[1, 17] = poison
    got = sample(logits, rows)

    assert got[1].token_id == -1
    assert [got[0], got[2]] == [healthy[0], healthy[2]]


def test_logprobs_are_the_models_own_whatever_the_request_changes() -> None:
    logits = random_logits(4, 12)
    rows = [
        row(temperature=0.0),
        row(seed=5, logprobs=0),
        row(seed=5, temperature=0.3, top_k=2, logprobs=3),
        row(temperature=0.0, logprobs=5, logit_bias={3: 50.0}, output=(1, 2), presence_penalty=2.0),
    ]
    expected = logits.double().log_softmax(-1)
    got = sample(logits, rows)

    assert (got[0].logprob, got[0].top) == (None, [])
    assert got[1].top == []
    assert got[3].token_id == 3
    for index, count in ((1, 0), (2, 3), (3, 5)):
        assert got[index].logprob == pytest.approx(float(expected[index, got[index].token_id]), abs=1e-5)
        best = expected[index].argsort(descending=True)[:count].tolist()
        assert [token for token, _ in got[index].top] == best
        assert [value for _, value in got[index].top] == pytest.approx(expected[index, best].tolist(), abs=1e-5)


def test_logprobs_may_ask_for_more_than_the_vocabulary() -> None:
    got = sample(random_logits(1, 2, vocabulary=5), [row(temperature=0.0, logprobs=20)])

    assert len(got[0].top) == 5


def test_a_sample_cannot_be_changed_after_it_is_drawn() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample(random_logits(1, 1), [row()])[0].token_id = 3  # type: ignore[misc]
