"""The kernel bench without a card: its sections run in Triton's interpreter, with nothing timed."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.kernels import run_sections
from bench.kernels_cases import SMALL, DeltaCase, decode_cases, kv_bytes
from bench.kernels_delta import GOAL, Timed, delta_results, fp8_results, fused_results, launch_cost, measure
from bench.kernels_dependents import dependent_results
from bench.kernels_gate import Finding, delta_findings
from bench.kernels_layers import RandomDecoder
from bench.kernels_model import DecodeCase, attention_cases, attention_results, layer_results, prefill_results
from bench.kernels_report import speedups
from bench.kernels_rivals import Call, DeltaWork, Unavailable, torch_rivals
from bench.kernels_timing import Clock, Device
from bench.record import Result
from lorafleet_kernels.gpu.card import Card

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

    assert last.value == pytest.approx(1.5 / ours)
    assert last.met is met
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


@pytest.mark.interpreted
def test_fused_and_separate_launches_are_both_run() -> None:
    found = fused_results(device(), endless(), SMALL, [(2, 2)])

    assert [r.case for r in found] == [f"fused, {g}: 2 rows, 2 adapters r16" for g in ("qkv", "o", "gate_up", "down")]


def test_adapters_in_fp8_are_measured_over_bfloat16() -> None:
    calls = iter((3e-6, 6e-6))

    def time(run: Callable[[], None], calls_of_run: int) -> float:
        run()
        return next(calls)

    over, share = fp8_results(device(time), endless(), SMALL, [DeltaCase("o", 2, 2, (8,), fp8=True)])

    assert over.case == "fp8, o: 2 rows, 2 adapters r8 fp8"
    assert over.ratio == pytest.approx(0.5)
    assert share.value == pytest.approx((2 * 8 * (256 + 256 + 4) + 2 * 2 * 3 * 256) / 3e-6 / H200)


def test_what_is_stored_in_fp8_is_heard() -> None:
    cases = [DeltaCase("qkv", 4, 2, (8, 24), fp8=True)]

    assert all(finding.passed for finding in delta_findings(SMALL, HERE, cases))


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


@pytest.mark.interpreted
def test_layers_with_adapters_are_measured_over_base() -> None:
    calls = iter((4e-6, 100e-6, 105e-6, 120e-6, 150e-6))

    def time(run: Callable[[], None], calls_of_run: int) -> float:
        run()
        return next(calls)

    base_decode, base, lora, in_line, apart = layer_results(device(time), endless(), SMALL, 4, 8, {2: 0.06})

    assert base_decode.goal == "<= 1.25"
    assert base.value == pytest.approx(100)
    assert lora.ratio == pytest.approx(1.05)
    assert lora.met
    assert in_line.ratio == pytest.approx(120 / 105)
    assert apart.ratio == pytest.approx(150 / 120)


def test_dependent_launches_are_measured_over_others_and_must_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(dependent_results(device(), endless(), SMALL, (4,), 8, (2,)))

    assert [r.case.partition("8, ")[2] for r in found[::2]] == [
        "base", "2 adapters r16, shrinks beside", "2 adapters r16, shrinks in line",
    ]  # fmt: skip
    assert all(r.met for r in found[1::2])
    monkeypatch.setattr(RandomDecoder, "with_dependents", lambda decoder: replace(decoder, norm=-decoder.norm))
    _, differs, *_ = dependent_results(device(), endless(), SMALL, (4,), 8, ())
    assert (differs.value, differs.met) == (4, False)


def test_a_card_without_dependent_launches_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Card, "of", lambda device: Card("an A100", (8, 0), 108))

    assert not list(dependent_results(device(), endless(), SMALL))
    assert "left out: dependent launches: an A100 has none" in capsys.readouterr().out


def test_a_section_that_fails_ends_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    kept = Result("kernels", "c", "m", 1.0, "us")

    def fails() -> Iterator[Result]:
        yield kept
        raise RuntimeError("no such kernel image")

    results, whole = run_sections({"first": fails, "second": lambda: [kept]})

    assert results == [kept, kept]
    assert not whole
    assert "first: failed" in capsys.readouterr().err


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
