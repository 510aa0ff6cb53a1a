"""The engine on the GPU's kernels, run by Triton's interpreter where there is no GPU: what it says is what the plain
operations say."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lorafleet_kernels.gpu.attention.plan import DoesNotFit
from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.lora import LoraConfig, Variant
from lorafleet_kernels.gpu.forms.step import default_forms
from lorafleet_kernels.gpu.lora.step import LoraStep
from lorafleet_kernels.gpu.tuning.document import Run
from lorafleet_kernels.gpu.tuning.lookup import Found, Tuning
from lorafleet_kernels.gpu.tuning.store import store
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.gpu import runner as runner_module
from lorafleet_runtime.engine.gpu.graphs import Captures, DecodeGraph, sizes_up_to
from lorafleet_runtime.engine.gpu.runner import GpuRunner
from lorafleet_runtime.engine.gpu.tune import Order
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.engine.step_plan import RunStep
from lorafleet_runtime.engine.transfers import Sending
from lorafleet_runtime.model.tiny import random_adapter, save_adapter, save_tiny_model, tiny_config
from lorafleet_runtime.protocol import AddRequest, LoadAdapter, Sampling

CONFIG = tiny_config("qwen3")
"""With norms of q and k; two query heads a key-value head."""
TARGETS = {"attention": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj"),
           "few": ("v_proj", "down_proj")}  # fmt: skip
RANKS = {"attention": 3, "mlp": 8, "few": 1}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engine]]:
    torch.set_num_threads(1)
    model = save_tiny_model(tmp_path / "model", CONFIG, seed=4)
    adapters = {
        name: save_adapter(tmp_path / name, random_adapter(CONFIG, RANKS[name], targets, seed, strength=2.0))
        for seed, (name, targets) in enumerate(TARGETS.items())
    }
    started: list[Engine] = []

    def make_engine(kernels: str, speculate: int = 0, overlap: str = "off") -> Engine:
        monkeypatch.setenv("LORAFLEET_KERNELS", kernels)
        config = EngineConfig(
            str(model), "tiny", dtype="float32", max_model_len=64, max_num_seqs=6, max_batched_tokens=24,
            memory_bytes=2**20, threads=1, overlap=overlap, speculate=speculate,
        )  # fmt: skip
        engine = start(config, lambda message, fraction: None)
        started.append(engine)
        for name, folder in adapters.items():
            engine.handle(LoadAdapter(name, "r1", str(folder)))
        while any(a.state == "Loading" for a in engine.state().adapters):
            engine.step()
        return engine

    yield make_engine
    for engine in started:
        engine.close()


def serve(engine: Engine) -> dict[str, list[int]]:
    """Prompts of one token to more than a step's, on every adapter and on none; some begin with the same page."""
    rng = random.Random(1)
    shared = [rng.randrange(256) for _ in range(16)]
    outputs: dict[str, list[int]] = {}
    for index, (name, length) in enumerate([(None, 1), ("attention", 9), ("mlp", 30), ("few", 5), ("mlp", 2)]):
        prompt = [rng.randrange(256) for _ in range(length)]
        engine.handle(AddRequest(f"{index}", prompt, Sampling(max_tokens=3, temperature=0), name))
    for index in range(2):
        sampling = Sampling(max_tokens=2, temperature=0.7, seed=index)
        engine.handle(AddRequest(f"shared {index}", [*shared, index], sampling, "attention"))
    while engine.has_work:
        for delta in engine.step():
            assert not delta.error
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
    return outputs


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
@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero) encountered:RuntimeWarning")
@pytest.mark.parametrize("overlap", ["off", "on"])
def test_decode_steps_that_are_replayed_over_the_same_memory_give_the_same_tokens(
    make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, overlap: str
) -> None:
    """What the rows beyond a step's compute, on whatever memory held, is nobody's: numpy may say that it overflows.
    With steps that overlap, tokens go from one to the next on the device, unseen by the host."""
    expected = serve(make("reference"))
    engine = make("triton", overlap=overlap)
    runner = engine._runner
    assert isinstance(runner, GpuRunner)
    replays: list[Callable[[], torch.Tensor]] = []
    unseen: list[int] = []
    take = runner_module.standing_tokens

    def standing(step: RunStep) -> list[int]:
        unseen.extend(token for token in take(step) if token < 0)
        return take(step)

    def poisoned(sending: Sending) -> NDArray[np.int32]:
        """Nobody reads what the step did not write."""
        memory = turn(sending)
        memory[:] = 2**30
        return memory

    turn = Sending.next
    monkeypatch.setattr(Sending, "next", poisoned)
    monkeypatch.setattr(runner_module, "standing_tokens", standing)

    def capture(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """As a graph does, but anew every time: always over the same buffers."""

        def replay() -> torch.Tensor:
            replays.append(step)
            return step()

        return Captures()(step) if torch.cuda.is_available() else replay

    runner.use_graphs(6, 8, capture)

    assert serve(engine) == expected
    assert torch.cuda.is_available() or len(set(replays)) > 1
    assert bool(unseen) is (overlap == "on")


@pytest.mark.interpreted
def test_more_references_to_shared_pages_than_a_graph_has_room_for_are_computed_without_it(
    make: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = []

    def run(graph: DecodeGraph, *step: object) -> torch.Tensor:
        fits.append(graph)
        raise DoesNotFit

    monkeypatch.setattr(DecodeGraph, "run", run)
    outputs = []
    for kernels in ("reference", "triton"):
        engine = make(kernels)
        if isinstance(engine._runner, GpuRunner):
            engine._runner.use_graphs(6, 8, lambda step: step)
        engine.handle(AddRequest("1", [5, 7, 9], Sampling(max_tokens=3, temperature=0), "mlp"))
        outputs.append([token for _ in range(4) for delta in engine.step() for token in delta.token_ids])

    assert outputs[0] == outputs[1]
    assert (len(outputs[0]), len(fits)) == (3, 2)


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
    order, card = Order.of(bounds, CONFIG), Card.of(torch.device("cpu"))
    tunings = []
    for step in order.steps:
        usual = default_forms(step, order.shapes.groups, order.shapes.grain, card.processors)
        other = {n: replace(c, splits=3 - min(c.splits, 2), lanes=2) for n, c in usual.configs.items()}
        tunings.append(Tuning(order.shapes, step, {n: Found(c, 1e-6, 2e-6) for n, c in other.items()}))
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


def test_there_is_a_graph_for_every_number_of_rows_and_few_rows_are_computed_in_vain() -> None:
    for most in (1, 2, 3, 6, 8, 64, 100, 256):
        sizes = sizes_up_to(most)
        assert sizes[-1] == most
        assert list(sizes) == sorted(set(sizes))
        for rows in range(1, most + 1):
            size = next(size for size in sizes if size >= rows)
            assert size - rows < max(rows, 2)
            assert rows < 64 or size - rows < 16


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
