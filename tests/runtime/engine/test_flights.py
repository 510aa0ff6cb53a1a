"""Steps that are scheduled while the one before them runs give what steps one by one give."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.core.invariants import leaks, violations
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.start import overlaps
from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.model.tiny import random_adapter, save_adapter, tiny_config
from lorafleet_runtime.protocol import AbortRequest, AddRequest, LoadAdapter, Sampling

CONFIG = tiny_config("llama")
NAMES = ("a", "b", "c")


class End(NamedTuple):
    reason: str
    error: str


Outcome = list[int | float | End]
"""Tokens, log-probabilities where they were asked for, and how it ended."""


def load(engine: Engine, folder: Path, *, alpha: float = 16.0, strength: float = 1.0) -> None:
    for seed, name in enumerate(NAMES):
        adapter = random_adapter(CONFIG, 4, ("q_proj", "down_proj"), seed, alpha=alpha, strength=strength)
        engine.handle(LoadAdapter(name, "r1", str(save_adapter(folder / name, adapter))))
    deadline = time.monotonic() + 30
    while any(a.state == "Loading" for a in engine.state().adapters):
        assert time.monotonic() < deadline
        engine.step()
        time.sleep(0.001)


def requests(count: int, seed: int) -> list[AddRequest]:
    """Of every kind: greedy and drawn, with and without what reads the output, that stop and that do not."""
    rng = random.Random(seed)
    made = []
    for index in range(count):
        sampling = Sampling(
            max_tokens=rng.choice((1, 2, 7, 20)),
            temperature=rng.choice((0.0, 0.0, 0.8)),
            seed=index,
            presence_penalty=rng.choice((0.0, 0.0, 0.7)),
            logprobs=rng.choice((-1, -1, 0)),
            stop_token_ids=tuple(rng.sample(range(256), 24)),
            min_tokens=rng.choice((0, 3)),
        )
        prompt = [rng.randrange(256) for _ in range(rng.choice((1, 9, 16, 33, 70)))]
        made.append(AddRequest(str(index), prompt, sampling, rng.choice((None, *NAMES)), tenant=rng.choice("xy")))
    return made


def serve(engine: Engine, asked: list[AddRequest], aborts: dict[int, str] | None = None) -> dict[str, Outcome]:
    """Requests come in a few at a time. What each got, token by token, and how it ended; audited in every step."""
    got: dict[str, Outcome] = {}
    waiting = list(asked)
    for step in range(2000):
        for request in waiting[:3]:
            engine.handle(request)
        del waiting[:3]
        if aborts and step in aborts:
            engine.handle(AbortRequest(aborts[step]))
        if not engine.has_work and not waiting:
            assert not leaks(engine._room, engine._scheduler)
            return got
        for delta in engine.step():
            got.setdefault(delta.request_id, []).extend(delta.token_ids)
            got[delta.request_id] += [round(each.logprob, 3) for each in delta.logprobs]
            if delta.finish_reason:
                got[delta.request_id].append(End(delta.finish_reason, delta.error))
        assert not violations(engine._room, engine._scheduler)
    raise AssertionError("still busy")


@pytest.mark.parametrize("seed", range(4))
def test_requests_of_every_kind_get_the_same_tokens(make: Callable[..., Engine], tmp_path: Path, seed: int) -> None:
    outcomes = []
    for overlap in ("off", "on"):
        engine = make(400, overlap=overlap)
        load(engine, tmp_path / overlap)
        outcomes.append(serve(engine, requests(40, seed)))
    assert {each[-1] for each in outcomes[0].values()} == {End("stop", ""), End("length", "")}
    assert outcomes[0] == outcomes[1]


def test_who_is_preempted_while_a_step_samples_for_it_goes_on_where_it_was(
    make: Callable[..., Engine], tmp_path: Path
) -> None:
    outcomes = []
    asked = [replace_length(request, 40) for request in requests(24, 7)]
    for overlap in ("off", "on"):
        engine = make(24 if overlap == "on" else 400, overlap=overlap)
        load(engine, tmp_path / overlap)
        outcomes.append(serve(engine, asked))
        if overlap == "on":
            assert engine._scheduler.preemptions > 3
    assert outcomes[0] == outcomes[1]


def replace_length(request: AddRequest, length: int) -> AddRequest:
    sampling = request.sampling
    return AddRequest(
        request.request_id, request.prompt_token_ids,
        Sampling(max_tokens=length, temperature=sampling.temperature, seed=sampling.seed,
                 presence_penalty=sampling.presence_penalty),
        request.adapter, tenant=request.tenant,
    )  # fmt: skip


def test_who_leaves_while_a_step_runs_gets_nothing_more_and_the_others_all_of_theirs(
    make: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = make(400, overlap="on")
    load(engine, tmp_path / "adapters")
    asked = requests(30, 3)
    alone = serve(engine, asked)
    aborts = {step: str(step) for step in range(2, 12)}

    left = serve(engine, asked, aborts)

    gone = {key for key in alone if key not in left or not isinstance(left[key][-1], End)}
    assert gone
    assert gone <= set(aborts.values())
    assert all(left[key] == alone[key] for key in alone.keys() - gone)


def test_an_adapter_that_overflows_ends_its_own_requests_alone(make: Callable[..., Engine], tmp_path: Path) -> None:
    engine = make(400, overlap="on")
    load(engine, tmp_path / "wild", alpha=1e38, strength=1e4)
    sampling = Sampling(max_tokens=6, temperature=0)
    asked = [AddRequest(str(i), [1, 2, 3 + i], sampling, name) for i, name in enumerate((None, "a", None, "b"))]

    got = serve(engine, asked)

    assert [len(got[str(i)]) for i in (0, 2)] == [7, 7]
    for i in (1, 3):
        end = got[str(i)][-1]
        assert isinstance(end, End)
        assert (end.reason, end.error.partition(":")[0]) == ("error", "numeric_overflow")


@pytest.mark.parametrize(("overlap", "ranks", "cores", "computing", "expected"), [
    ("auto", 1, 4, 3, True),
    ("auto", 1, 2, 2, False),  # every core computes
    ("auto", 2, 8, 4, False),  # the other ranks do not know what was sampled
    ("on", 1, 2, 2, True),
    ("off", 1, 8, 1, False),
])  # fmt: skip
def test_steps_overlap_where_a_core_is_left_unless_told(
    overlap: str, ranks: int, cores: int, computing: int, expected: bool
) -> None:
    config = EngineConfig("m", "m", tensor_parallel=ranks, overlap=overlap)
    assert overlaps(config, cores, computing) is expected


def test_overlap_with_several_ranks_is_refused() -> None:
    config = EngineConfig("", "m", overlap="on")
    config.check()
    with pytest.raises(ConfigError, match="--overlap 'on' needs --tensor-parallel 1"):
        replace(config, tensor_parallel=2).check()
