"""Steps that are scheduled while the one before them runs give what steps one by one give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.start import overlaps
from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.protocol import AddRequest, Sampling
from tests.runtime.engine.traffic import End, load, requests, serve


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


@pytest.mark.parametrize(("overlap", "device", "ranks", "cores", "computing", "expected"), [
    ("auto", "cpu", 1, 4, 3, True),
    ("auto", "cpu", 1, 2, 2, False),  # every core computes
    ("auto", "cpu", 2, 8, 4, False),  # the other ranks do not know what was sampled
    ("auto", "cuda", 1, 2, 2, True),  # the cores wait for it
    ("on", "cpu", 1, 2, 2, True),
    ("off", "cpu", 1, 8, 1, False),
])  # fmt: skip
def test_steps_overlap_where_a_core_is_left_unless_told(
    overlap: str, device: str, ranks: int, cores: int, computing: int, expected: bool
) -> None:
    config = EngineConfig("m", "m", device=device, tensor_parallel=ranks, overlap=overlap)
    assert overlaps(config, cores, computing) is expected


def test_overlap_with_several_ranks_is_refused() -> None:
    config = EngineConfig("", "m", overlap="on")
    config.check()
    with pytest.raises(ConfigError, match="--overlap 'on' needs --tensor-parallel 1"):
        replace(config, tensor_parallel=2).check()
