"""A step of the plain operations on a card that is not there: torch knows of every tensor on which device it would be,
and refuses operations between two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lorafleet_runtime.engine import runner as runner_module
from lorafleet_runtime.engine.runner import Runner, page_elements
from lorafleet_runtime.engine.step_plan import BASE, Plan, PlannedRow, RunStep
from lorafleet_runtime.model.adapter_weights import AdapterWeights, LoraPair
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.lora import PackedAdapter, pack
from lorafleet_runtime.model.tiny import random_weights, tiny_config

CONFIG = tiny_config("qwen3")
TARGETS = ("q_proj", "v_proj", "down_proj")


@pytest.fixture(autouse=True)
def _plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFLEET_KERNELS", "reference")
    real = torch.tensor

    def tensor(
        values: Sequence[Any], *, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> torch.Tensor:
        """Of the same shape: without a driver the numbers cannot go there."""
        made = real(values, dtype=dtype)
        return made if device is None else torch.empty(made.shape, dtype=made.dtype, device=device)

    def on_device(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return tensor(values, dtype=dtype, device=device)

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(runner_module, "on_device", on_device)


def runner() -> Runner:
    weights = {name: torch.empty(t.shape, device="cuda") for name, t in random_weights(CONFIG, 0).items()}
    return Runner(Decoder(CONFIG, weights, 64), 50)


def packed() -> PackedAdapter:
    pairs = {}
    for layer in range(CONFIG.num_layers):
        for target in TARGETS:
            out, k = CONFIG.linear_shape(target)
            pairs[layer, target] = LoraPair(torch.zeros(4, k), torch.zeros(out, 4))
    return pack(AdapterWeights(4, pairs, TARGETS), CONFIG, page_elements(CONFIG.kv_dim), torch.float32)


def test_decodes_prompts_and_adapters_in_scattered_pages_stay_on_the_card() -> None:
    with FakeTensorMode(), torch.inference_mode():
        on_card, adapter = runner(), packed()
        assert (on_card.pool.device.type, adapter.blob.device.type) == ("cuda", "cpu")
        on_card._numbers[adapter.layout.signature] = 0
        pages = [10 + 2 * page for page in range(adapter.layout.pages)]
        rows = [
            PlannedRow(5, [1], True, 1, [1]),
            PlannedRow(17, [1], True, BASE, [2, 4]),
            PlannedRow(0, [1, 2, 3], True, BASE, [3]),  # begins a sequence
            PlannedRow(4, [5, 6], True, 1, [5]),  # goes on with one
            PlannedRow(0, [5] * 20, False, 1, [6, 7]),
        ]
        logits = on_card.logits(Plan(RunStep(rows, [(1, pages)], []), (adapter,)))

    assert (tuple(logits.shape), logits.device.type) == ((4, CONFIG.vocab_size), "cuda")


def test_an_operation_between_two_devices_is_noticed() -> None:
    with FakeTensorMode(), pytest.raises(RuntimeError, match="devices"):
        runner().pool[:, 0].add_(torch.zeros(CONFIG.num_layers, page_elements(CONFIG.kv_dim)))
