"""Goals point the right way: a slower engine misses them, a faster one meets them."""

from __future__ import annotations

from bench.engine_cells import (
    BASE32,
    C1,
    C32,
    OURS,
    PEFT_MIXED,
    PEFT_SINGLE,
    PEFT_SWAP,
    RANKS,
    VLLM,
    VLLM_BASE,
    Measured,
)
from bench.engine_results import results
from bench.load_client import Answer, Outcome


def _outcome(tokens_a_second: float, ttft: float) -> Outcome:
    seconds = 2048 / tokens_a_second
    return Outcome([Answer(0.0, ttft, seconds, [1] * 64) for _ in range(32)], seconds, cut=False)


def _measured(ours: float, ours_ttft: float) -> Measured:
    measured = Measured(128, 64, limits=[2048 / 500] * 2)
    speeds = {
        (C32, OURS): ours, (BASE32, OURS): ours * 1.1, (RANKS, OURS): ours * 0.95, (C32, VLLM): 40.0,
        (RANKS, VLLM): 7.0, (BASE32, VLLM_BASE): 180.0, (C32, PEFT_MIXED): 83.0, (C32, PEFT_SWAP): 40.0,
        (C1, PEFT_SINGLE): 12.0,
    }  # fmt: skip
    for (cell, system), speed in speeds.items():
        measured.outcomes[cell, system] += [_outcome(speed, ours_ttft if system == OURS else 5.0)] * 2
    return measured


def _met(measured: Measured) -> dict[str, bool | None]:
    return {r.metric: r.met for r in results(measured, "here") if r.goal}


def test_a_fast_engine_meets_every_goal() -> None:
    met = _met(_measured(400.0, 1.0))
    assert len(met) == 8
    assert all(met.values()), met


def test_a_slow_engine_misses_every_goal_over_others() -> None:
    met = _met(_measured(40.0, 9.0))
    missed = {metric for metric, reached in met.items() if not reached}
    assert missed == {metric for metric in met if "our own" not in metric}


def test_costly_adapters_miss_the_goals_over_ourselves() -> None:
    measured = _measured(400.0, 1.0)
    measured.outcomes[BASE32, OURS] = [_outcome(500.0, 1.0)] * 2
    measured.outcomes[RANKS, OURS] = [_outcome(300.0, 1.0)] * 2
    missed = {metric for metric, reached in _met(measured).items() if not reached}
    assert missed == {"output, over our own with rank 16", "LoRA overhead: seconds, over our own base"}


def test_what_was_cut_off_says_so() -> None:
    measured = Measured(128, 64)
    measured.outcomes[RANKS, VLLM].append(Outcome([Answer(0.0, 1.0, 9.0, [1, 2])], 90.0, cut=True))
    assert {r.case for r in results(measured, "here")} == {f"{RANKS}: {VLLM} (cut off); here"}
