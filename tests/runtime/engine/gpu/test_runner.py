"""The engine on the GPU's kernels, run by Triton's interpreter where there is no GPU: what it says is what the plain
operations say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.lora import LoraConfig, Variant
from lorafleet_kernels.gpu.forms.step import default_forms
from lorafleet_kernels.gpu.lora.step import LoraStep
from lorafleet_kernels.gpu.operations import TritonOperations
from lorafleet_kernels.gpu.tuning.attention.lookup import AttentionTuning, Measured
from lorafleet_kernels.gpu.tuning.document import Run, Tuning
from lorafleet_kernels.gpu.tuning.lora.lookup import Found, LoraTuning
from lorafleet_kernels.gpu.tuning.store import store
from lorafleet_kernels.gpu.tuning.tasks import AttentionTask
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.gpu.runner import GpuRunner
from lorafleet_runtime.engine.gpu.tune import tasks_of
from lorafleet_runtime.protocol import AddRequest, Sampling
from tests.runtime.engine.gpu.traffic import CONFIG, serve


@pytest.mark.interpreted
def test_requests_on_ragged_batches_of_adapters_get_the_plain_operations_tokens(
    make: Callable[..., Engine],
) -> None:
    expected = serve(make("reference"))
    engine = make("triton")
    assert engine._model.joined
    assert isinstance(engine._runner, GpuRunner)

    assert serve(engine) == expected
    assert engine.state().counters.prefix_tokens_hit
    assert {len(tokens) for tokens in expected.values()} == {2, 3}


@pytest.mark.interpreted
def test_forms_that_were_tuned_are_run_and_say_the_same(
    make: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = AddRequest("1", [5, 17, 3, 200, 9, 41], Sampling(max_tokens=3, temperature=0), "mlp")

    def said(engine: Engine) -> list[int]:
        engine.handle(request)
        tokens: list[int] = []
        while engine.has_work:
            tokens += [token for delta in engine.step() for token in delta.token_ids]
        return tokens

    expected = said(make("reference"))
    monkeypatch.setenv("LORAFLEET_TUNINGS", str(tmp_path / "tunings"))
    bounds = EngineConfig("", "tiny", dtype="float32", max_num_seqs=24, max_batched_tokens=24, max_lora_rank=8)
    card = Card.of(torch.device("cpu"))
    tunings: list[Tuning] = []
    for task in tasks_of(bounds, CONFIG):
        if isinstance(task, AttentionTask):
            other_form = task.heads.candidates(task.phase, card.capability)[-1]
            tunings.append(AttentionTuning(task.heads, other_form, (Measured(task.sequences[0], 1e-6, 2e-6),)))
        else:
            usual = default_forms(task.step, task.shapes.groups, task.shapes.grain, card.processors)
            other = {n: replace(c, splits=3 - min(c.splits, 2), lanes=2) for n, c in usual.configs.items()}
            tunings.append(LoraTuning(task.shapes, task.step, {n: Found(c, 1e-6, 2e-6) for n, c in other.items()}))
    store(Run({}, tuple(tunings)), card, tmp_path / "tunings")
    engine = make("triton")
    runner = engine._runner
    assert isinstance(runner, GpuRunner)
    run: list[LoraConfig] = []
    shrink = LoraStep.shrink

    def shrinks(self: LoraStep, layer: int, group: str, x: torch.Tensor) -> None:
        run.append(self._forms[group].config)
        shrink(self, layer, group, x)

    monkeypatch.setattr(LoraStep, "shrink", shrinks)

    assert said(engine) == expected
    assert len(expected) == 3
    assert {config.lanes for config in run} == {2}  # by default 1
    assert {config.variant for config in run} == set(Variant)
    assert isinstance(runner.model.ops, TritonOperations)
    shape, _ = runner.model.ops.heads(runner.model.heads, torch.float32)
    assert {shape.decode, shape.prefill} == {t.form for t in tunings if isinstance(t, AttentionTuning)}


@pytest.mark.interpreted
def test_guesses_at_further_tokens_change_none(make: Callable[..., Engine]) -> None:
    says = [Sampling(max_tokens=8, temperature=1, seed=i, logit_bias={i: 1e3, 9: 1e3}) for i in range(3)]
    requests = [
        AddRequest(f"{i}", [i, 9] * 4, sampling, name)
        for i, (sampling, name) in enumerate(zip(says, (None, "mlp", "attention"), strict=True))
    ]
    outputs: list[dict[str, list[int]]] = []
    for kernels, speculate in (("reference", 0), ("triton", 4)):
        engine = make(kernels, speculate)
        said: dict[str, list[int]] = {}
        for request in requests:
            engine.handle(request)
        while engine.has_work:
            for delta in engine.step():
                said.setdefault(delta.request_id, []).extend(delta.token_ids)
        outputs.append(said)

    assert outputs[1] == outputs[0]
    assert 0 < engine.state().counters.accepted_tokens < engine.state().counters.draft_tokens
