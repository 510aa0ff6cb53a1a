"""The engine bench without a card: its parts, and all of it in tiny form in Triton's interpreter."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.cuda_capacity import covered
from bench.cuda_engines import Engines, decoding, kernels, loaded, step_seconds
from bench.cuda_gate import difference
from bench.cuda_lines import Lines
from bench.cuda_overhead import BASE_GOAL, OFF, ON, Batch, told
from bench.cuda_setup import LARGE, TINY, of_model, write_adapters, write_model
from lorafleet_runtime.model.checkpoint import read_config
from lorafleet_runtime.protocol import TokenLogprobs

CPU = torch.device("cpu")
WITHOUT_A_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it measures")


def lines(*, timed: bool = True) -> Lines:
    return Lines(timed, 4.3e12, "a card", "a model's shapes")


def test_goals_count_where_something_is_timed_only() -> None:
    assert lines().line("c", "m", 21.0, "s", most=20).met is False
    assert lines().line("c", "m", 20.0, "s", most=20).met
    assert lines().over("c", "m", 97.0, 100.0, "tokens/s", least=0.98).met is False
    assert lines(timed=False).over("c", "m", 97.0, 100.0, "tokens/s", least=0.98).met is None
    assert lines().over("c", "m", 97.0, None, "ms", most=1).ratio is None


def test_a_decode_step_is_compared_with_its_bytes_with_lora_off_and_with_none() -> None:
    made = lines()
    made.steps = {(OFF, 1): 3.9e-3, (OFF, 64): 6e-3, (ON, 64): 6.03e-3, ("alike", 64): 6.4e-3, ("distinct", 64): 7.7e-3}

    [base] = told(Batch(OFF), 1, LARGE, made)
    assert (base.goal, base.met) == (f"<= {BASE_GOAL}", True)
    assert base.baseline == pytest.approx(3.5, rel=0.02)  # the engine_kernels' table 4.2, with a context of 1,024
    [same] = told(Batch(ON), 64, LARGE, made)
    assert same.ratio == pytest.approx(1.005)
    assert same.met
    [alike] = told(Batch("alike", (), 8, 16), 64, LARGE, made)
    assert (alike.goal, alike.met) == ("<= 1.06", False)
    [distinct] = told(Batch("distinct", (), 64, 16), 64, LARGE, made)
    assert (distinct.goal, distinct.met) == ("<= 1.27", False)
    assert "64 adapters of mean rank 16" in distinct.metric


def test_the_union_of_spans_counts_overlaps_once() -> None:
    assert covered([(5, 7), (0, 2), (1, 3), (6, 6.5)]) == 5
    assert covered([]) == 0


def test_engines_on_other_kernels_launch_no_dependents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFLEET_KERNELS", "triton")
    monkeypatch.setenv("LORAFLEET_DEPENDENT_LAUNCHES", "1")
    seen = []
    for name in ("reference", "triton"):
        with kernels(name):
            seen.append((os.environ["LORAFLEET_KERNELS"], os.environ.get("LORAFLEET_DEPENDENT_LAUNCHES")))

    assert seen == [("reference", None), ("triton", "1")]
    assert os.environ["LORAFLEET_DEPENDENT_LAUNCHES"] == "1"


def said(*tokens: tuple[int, float, float]) -> dict[str, list[TokenLogprobs]]:
    """A request's tokens: id, logarithm of its probability, and that of the next best."""
    return {"r": [TokenLogprobs(token, own, [(token, own), (99, other)]) for token, own, other in tokens]}


def test_the_gate_compares_probabilities_up_to_where_another_token_may_follow() -> None:
    first, second, third = (1, -1.0, -3.0), (2, -0.5, -0.501), (3, -0.1, -9.0)

    def of(*got: tuple[int, float, float]) -> float:
        return difference(said(first, second, third), said(*got), "float32")

    assert of(first, second, third) == 0
    assert of((1, -1.001, -3.0), second, third) == pytest.approx(0.5)
    assert of(first, (5, -0.5, -0.6), (6, -2.0, -9.0)) == pytest.approx(0.5)  # what follows is another text
    assert of((4, -1.0, -3.0), second, third) == math.inf
    assert of(first, second) == math.inf
    assert of((1, math.nan, -3.0), second, third) == math.inf


def test_a_model_that_is_given_bounds_the_lengths() -> None:
    scale = of_model(replace(LARGE.config, max_position_embeddings=2048))

    assert (scale.max_model_len, scale.context, scale.prompts) == (2048, 1024, (512,))


def test_an_engine_on_random_weights_decodes_as_many_rows_as_are_wanted(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", TINY.config, torch.float32, CPU)
    files = write_adapters(tmp_path / "adapters", TINY)
    engines = Engines(TINY, model, CPU)
    with kernels("reference"):
        engine = engines.get()
    assert read_config(model) == TINY.config
    assert engines.get() is engine
    with loaded(engine, "a", files.alike, 2) as names, decoding(engine, 2, TINY.context, names, TINY):
        assert step_seconds(engine, 2, 3) > 0
        with pytest.raises(RuntimeError, match="did not have the 3 rows"):
            step_seconds(engine, 3, 3)
    assert not engine.state().adapters
    assert engines.last_start is not None and engines.last_start.load > 0
    engines.drop()


@pytest.mark.slow
@pytest.mark.interpreted
@WITHOUT_A_GPU
def test_all_sections_run_in_tiny_form_and_nothing_is_written(tmp_path: Path) -> None:
    data = Path(__file__).parents[2] / "bench" / "data"
    before = sorted(data.iterdir())
    done = _bench("--quick")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "passes: an engine on cpu in float32" in done.stdout
    for part in ("start", "decode, 2 rows", "prompt of", "device idle", "in host memory", "4 adapters of", "filled by"):
        assert part in done.stdout
    assert "failed" not in done.stdout + done.stderr.replace("gpuGetDeviceCount failed", "")
    assert sorted(data.iterdir()) == before


@pytest.mark.slow
@WITHOUT_A_GPU
def test_without_a_gpu_the_whole_bench_is_refused_with_the_reason() -> None:
    done = _bench()

    assert done.returncode == 2
    assert "no CUDA device: " in done.stderr
    assert "--quick runs all sections" in done.stderr


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.cuda", *arguments],
        capture_output=True, text=True, check=False, timeout=900, cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
