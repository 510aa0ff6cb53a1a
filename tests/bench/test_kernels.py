"""The kernel bench without a card: its numbers against those worked out by hand, and its sections in the interpreter."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bench.kernels_cases import (
    LLAMA_3_8B,
    SMALL,
    DeltaCase,
    adapter_bytes,
    base_bytes,
    copies,
    decode_cases,
    delta_bytes,
    floor,
    geometric_mean,
    kv_bytes,
    prefill_cases,
    segments,
    shapes,
)
from bench.kernels_delta import GOAL, Timed, delta_results, fused_results, launch_cost, measure
from bench.kernels_gate import Finding
from bench.kernels_model import DecodeCase, attention_cases, attention_results, layer_results, prefill_results
from bench.kernels_report import speedups
from bench.kernels_rivals import Call, DeltaWork, Unavailable, torch_rivals
from bench.kernels_timing import Clock, Device

H200 = 4.3e12
HERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def run_once(run: Callable[[], None], calls: int) -> float:
    """Instead of a clock: everything happens, nothing is timed."""
    run()
    return 1e-6


def device(time: Callable[[Callable[[], None], int], float] = run_once) -> Device:
    return Device(HERE, "none", "none", 1, 1 << 40, H200, time)


def endless() -> Clock:
    return Clock(1.0, lambda: 0.0)


def test_an_adapter_of_rank_16_costs_what_bytes_say() -> None:
    assert adapter_bytes(1) == 2 * 32 * 81_920
    assert 1e6 * adapter_bytes(16) / H200 == pytest.approx(19.5, abs=0.05)


def test_the_base_model_reads_15_gigabytes() -> None:
    assert base_bytes() == 13_958_643_712 + 1_050_673_152
    assert 1e3 * base_bytes() / H200 == pytest.approx(3.49, abs=0.005)
    assert 32 * kv_bytes(1) == 131_072


@pytest.mark.parametrize(("rows", "adapters", "base", "overhead"), [(64, 8, 5.49, 0.028), (64, 64, 5.49, 0.227)])
def test_the_floor_is_that_of_the_table(rows: int, adapters: int, base: float, overhead: float) -> None:
    found = floor(rows, adapters, H200)

    assert found.base == pytest.approx(base, abs=0.005)
    assert found.overhead == pytest.approx(overhead, abs=0.0005)


def test_bytes_of_a_case_are_its_adapters_and_activations() -> None:
    case = DeltaCase("qkv", 64, 8, (16,))

    assert delta_bytes(case) == 8 * 16 * (3 * 4096 + 6144) * 2 + 64 * (4096 + 2 * 6144) * 2
    assert delta_bytes(DeltaCase("down", 2048, 1, (8,))) == 8 * (14336 + 4096) * 2 + 2048 * (14336 + 8192) * 2


def test_shapes_are_llamas() -> None:
    assert {name: (g.k, g.widths) for name, g in shapes(LLAMA_3_8B).items()} == {
        "qkv": (4096, (4096, 1024, 1024)),
        "o": (4096, (4096,)),
        "gate_up": (4096, (14336, 14336)),
        "down": (14336, (4096,)),
    }


def test_a_cycle_outgrows_the_cache_twice() -> None:
    for moved in (1, 131_072, 60 << 20, 1 << 33):
        assert copies(moved, 50 << 20) * moved > 2 * (50 << 20)
    assert copies(1 << 33, 50 << 20) == 2


def test_cases_cover_batches_ranks_and_numbers_of_adapters() -> None:
    cases = decode_cases()
    assert len(set(cases)) == len(cases)
    assert {c.group for c in cases} == {"qkv", "o", "gate_up", "down"}
    assert {c.rows for c in cases} >= {1, 256}
    assert any(c.adapters == c.rows == 256 for c in cases)
    assert {c.ranks for c in cases} == {(8,), (16,), (32,), (64,), (128,), (8, 16, 32, 64, 128)}
    assert {c.adapters for c in prefill_cases()} == {1, 2, 4, 8}
    assert cases == decode_cases()
    # Any tenth of them has all groups and both few and many rows: a budget that ends early leaves a fair sample.
    tenth = cases[: len(cases) // 10]
    assert len({c.group for c in tenth}) == 4
    assert min(c.rows for c in tenth) <= 8
    assert max(c.rows for c in tenth) == 256


def test_segments_are_equal_or_refused() -> None:
    assert segments(6, 3) == [(0, 2, 0), (2, 4, 1), (4, 6, 2)]
    with pytest.raises(ValueError, match="no multiple"):
        segments(7, 2)


def test_the_mean_is_geometric() -> None:
    assert geometric_mean([1.0, 4.0, 2.0]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no values"):
        geometric_mean([])


def test_a_finding_passes_only_if_its_control_is_noticed() -> None:
    assert Finding("right", 0.9, 30.0).passed
    assert not Finding("wrong", 1.1, 30.0).passed
    assert not Finding("blind", 0.9, 0.9).passed
    assert not Finding("nan", math.inf, 30.0).passed


def _timed(ours: float, other: float) -> list[Timed]:
    return [Timed(case, ours, None, {"torch bmm": other, "slow": 9.0}) for case in decode_cases()[:3]]


@pytest.mark.parametrize(("ours", "met"), [(1.0, True), (2.0, False)])
def test_the_goal_is_over_the_best_of_the_others(ours: float, met: bool) -> None:
    *_, last = delta_results("decode", _timed(ours, 1.5), 3, device(), GOAL)

    assert (last.value, last.met) == (pytest.approx(1.5 / ours), met)
    assert "slow, torch bmm" in last.metric


def test_the_chart_has_a_line_for_each_rank_that_was_measured() -> None:
    timed = [Timed(DeltaCase("o", rows, 1, (8,)), 1.0, None, {"other": speed}) for rows, speed in ((1, 2.0), (8, 3.0))]

    (line,) = speedups(timed)
    assert line.name == "rank 8"
    assert [x for x, _ in line.points] == [1.0, 8.0]
    assert [y for _, y in line.points] == pytest.approx([2.0, 3.0])


class _Wrong:
    name = "wrong"

    def prepare(self, work: DeltaWork) -> Call:
        return lambda i: work.y[i].add_(1)


class _Missing:
    name = "missing"

    def prepare(self, work: DeltaWork) -> Call:
        raise Unavailable("not installed")


class _Broken:
    name = "broken"

    def prepare(self, work: DeltaWork) -> Call:
        raise TypeError("unexpected keyword argument 'split_k'")


def test_who_is_wrong_missing_or_broken_is_left_out_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    cases = [DeltaCase("o", 4, 2, (8,)), DeltaCase("qkv", 4, 1, (8,))]

    timed = list(measure(device(), cases, [_Wrong(), _Missing(), _Broken(), *torch_rivals()], endless(), SMALL))

    assert [set(t.others) for t in timed] == [{"torch grouped_mm", "torch bmm", "torch masked dense"}] * 2
    told = capsys.readouterr().out
    assert "wrong on o: 4 rows, 2 adapters r8: its result is" in told
    assert told.count("not installed") == 1
    assert "broken on o: 4 rows, 2 adapters r8: TypeError: unexpected keyword argument 'split_k'" in told


def test_a_section_ends_with_its_budget() -> None:
    now = iter((0.0, 0.5, 1.5))

    timed = list(measure(device(), decode_cases(), [], Clock(1.0, lambda: next(now)), SMALL))

    assert len(timed) == 1


def test_fused_and_separate_launches_are_both_run() -> None:
    found = fused_results(device(), endless(), SMALL, [(2, 2)])

    assert [r.case for r in found] == [f"fused, {g}: 2 rows, 2 adapters r16" for g in ("qkv", "o", "gate_up", "down")]


def test_launch_cost_is_of_the_same_case() -> None:
    (result,) = launch_cost(device(), run_once, SMALL, 4, 2)

    assert result.case == "decode, qkv: 4 rows, 2 adapters r16, launched one by one"


def test_attention_goals_are_of_large_cases_only() -> None:
    long = DecodeCase("long", (40,))
    slow = Device(HERE, "none", "none", 1, 1 << 40, 1e6, run_once)

    assert [r.goal for r in attention_results(device(), endless(), [long], SMALL)] == ["", ""]
    assert attention_results(slow, endless(), [long], SMALL)[1].goal == ">= 0.85"
    assert {len(c.contexts) for c in attention_cases()} >= {1, 256}
    assert all(kv_bytes(sum(c.contexts)) < 5e9 for c in attention_cases())


def test_prefill_is_measured_against_torch() -> None:
    (result,) = prefill_results(device(), endless(), [24], SMALL)

    assert result.ratio == 1.0


def test_layers_with_adapters_are_measured_over_base() -> None:
    calls = iter((4e-6, 100e-6, 105e-6, 130e-6))

    def time(run: Callable[[], None], calls_of_run: int) -> float:
        run()
        return next(calls)

    base_decode, base, lora, apart = layer_results(device(time), endless(), SMALL, 4, 8, {2: 0.06})

    assert base_decode.goal == "<= 1.25"
    assert base.value == pytest.approx(100)
    assert (lora.ratio, lora.met) == (pytest.approx(1.05), True)
    assert apart.ratio == pytest.approx(130 / 105)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, --quick times")
def test_without_a_gpu_quick_runs_the_gate_and_says_that_nothing_was_timed() -> None:
    done = _bench("--quick")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILS" not in done.stdout
    assert "19.5 us" in done.stdout
    assert "base 5" in done.stdout
    assert "nothing was timed" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it runs")
def test_without_a_gpu_the_whole_bench_is_refused() -> None:
    done = _bench()

    assert done.returncode == 2
    assert "no CUDA device" in done.stderr


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.kernels", *arguments],
        capture_output=True, text=True, check=False, timeout=300, cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
