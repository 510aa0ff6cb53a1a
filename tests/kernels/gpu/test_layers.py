"""A shrink runs beside its product, between what it reads and what reads it, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from bench.kernels_cases import SMALL
from bench.kernels_layers import RandomDecoder, RandomLayer, context, expands_apart
from bench.kernels_pools import stored
from lorafleet_kernels.gpu.beside import Beside
from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.layers import TritonLayers
from lorafleet_kernels.gpu.lora.step import LoraStep
from lorafleet_runtime.model.config import LORA_TARGETS

pytestmark = pytest.mark.interpreted

CONFIG = replace(SMALL, num_layers=2)
EXPANDS = ("expand", "pending", "expand_silu_and_mul", "expand_add_rms_norm")


class Order:
    """What happens, in order; also `lora.beside`, for a device that has one stream."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def begin(self, work: Callable[[], None]) -> None:
        self.events.append("begin")
        work()

    def join(self) -> None:
        self.events.append("join")


class Watched(RandomLayer):
    """A layer whose products are noted."""

    order: Order

    def __getattribute__(self, name: str) -> object:
        found = super().__getattribute__(name)
        if name not in ("qkv", "o", "gate_up", "down"):
            return found

        def product(x: Tensor) -> Tensor:
            Watched.order.events.append("product")
            result: Tensor = cast(Callable[[Tensor], Tensor], found)(x)
            return result

        return product


def watch(lora: LoraStep, order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    def noted(name: str, does: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            order.events.append(name)
            return does(*arguments)

        return call

    monkeypatch.setattr(lora, "shrink", noted("shrink", lora.shrink))
    for name in EXPANDS:
        monkeypatch.setattr(lora, name, noted("expand", getattr(lora, name)))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "apart"])
def test_every_shrink_is_beside_its_product_and_before_its_expand(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoder = RandomDecoder.of(CONFIG, device, torch.float32)
    held = context(CONFIG, [5, 17, 3], (), device, torch.float32)
    card = Card("interpreted", (9, 0), 4)
    lora = stored(CONFIG, (3, 8), LORA_TARGETS, device, torch.float32).step([(0, 1, 1), (2, 3, 0)], 3, card)
    x = torch.randn(3, CONFIG.hidden_size, generator=torch.Generator().manual_seed(3)).to(device)
    layers = [Watched(each.input_norm, each.post_norm, each.weights) for each in decoder.layers]
    watched = TritonLayers(layers, CONFIG.rms_norm_eps)
    order = Watched.order = Order()

    def run() -> Tensor:
        if fused:
            return watched(x.clone(), held.attention, lora)
        with expands_apart():
            return watched(x.clone(), held.attention, lora)

    in_line = run()
    base = watched(x.clone(), held.attention, None)
    order.events.clear()
    watch(lora, order, monkeypatch)
    lora.beside = cast(Beside, order)
    beside = run()

    assert order.events == ["begin", "shrink", "product", "join", "expand"] * 4 * CONFIG.num_layers
    assert torch.equal(beside, in_line)
    assert not torch.equal(beside, base)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_work_beside_comes_behind_what_was_launched_and_before_what_follows_its_join() -> None:
    beside, number = Beside(torch.device("cuda")), torch.ones(1, device="cuda")
    torch.cuda._sleep(100_000_000)  # type: ignore[no-untyped-call]
    number += 1
    beside.begin(lambda: (torch.cuda._sleep(100_000_000), number.mul_(3), None)[-1])  # type: ignore[no-untyped-call]
    beside.join()
    assert (number + 1).item() == 7
