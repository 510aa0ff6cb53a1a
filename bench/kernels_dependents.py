"""Section of `bench.kernels`: the layers of a Llama-3-8B in order, whose kernels start before those ahead of them have
ended, over the same one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bench.kernels_cases import LLAMA_3_8B, segments
from bench.kernels_layers import Context, RandomDecoder, context
from bench.kernels_model import LENGTH, ROWS, layers_that_fit
from bench.kernels_pools import stored
from bench.kernels_timing import Clock, Device, result
from bench.record import Result
from lorafleet_kernels.gpu.card import LAUNCHES_DEPENDENTS, Card
from lorafleet_kernels.gpu.lora.step import LoraStep
from lorafleet_runtime.model.config import LORA_TARGETS, DecoderConfig

ADAPTERS = (8, 64)


def dependent_results(
    device: Device, clock: Clock, model: DecoderConfig = LLAMA_3_8B, batches: Sequence[int] = (1, ROWS),
    length: int = LENGTH, adapters: Sequence[int] = ADAPTERS,
) -> Iterator[Result]:  # fmt: skip
    """Of each batch a step without adapters, and with rank 16 on all linear layers: shrinks beside the products, and in
    line. A result that is not the same, bit for bit, after all replays, is a goal that is not met. Nothing where the
    card has no such launches."""
    card = Card.of(device.device)
    if card.capability < LAUNCHES_DEPENDENTS:
        print(f"left out: dependent launches: {card.name} has none")
        return
    config = replace(model, num_layers=layers_that_fit(device.memory, model))
    decoder = RandomDecoder.of(config, device.device)
    for rows in batches:
        held = context(config, [length] * rows, (), device.device)
        noise = torch.randn(rows, config.hidden_size, device=device.device).to(torch.bfloat16)
        if clock.over:
            return
        yield from _compared(f"{rows} rows of {length}, base", decoder, held, noise, None, device)
        for count in sorted({min(count, rows) for count in adapters}):
            if clock.over:
                return
            held_adapters = stored(config, (16,) * count, LORA_TARGETS, device.device)
            lora = held_adapters.step(segments(rows, count), rows, card)
            name = f"{rows} rows of {length}, {count} adapters r16"
            yield from _compared(f"{name}, shrinks beside", decoder, held, noise, lora, device)
            lora.beside = None
            yield from _compared(f"{name}, shrinks in line", decoder, held, noise, lora, device)
            del held_adapters, lora


def _compared(
    case: str, decoder: RandomDecoder, held: Context, noise: Tensor, lora: LoraStep | None, device: Device
) -> Iterator[Result]:
    layers, x = decoder.config.num_layers, torch.empty_like(noise)

    def timed(model: RandomDecoder, there: Context, dependent: bool) -> tuple[float, Tensor]:
        """Seconds of a layer, and the logits that the last replay left."""
        said = torch.empty(len(x), decoder.config.vocab_size, dtype=x.dtype, device=x.device)
        if lora is not None:
            lora.dependent = dependent

        def run() -> None:
            x.copy_(noise)
            said.copy_(model.logits(model(x, there.attention, lora)))

        return device.time(run, layers), said

    before, expected = timed(decoder, held, dependent=False)
    after, found = timed(decoder.with_dependents(), held.with_dependents(), dependent=True)
    case = f"dependent launches, {case}"
    yield result(case, "a layer (with its part of lm_head), over one after the other", 1e6 * after, "us", 1e6 * before,
                 after / before)  # fmt: skip
    differ = int((found != expected).any(1).sum())
    yield result(case, "rows that say something else", differ, "rows", goal="0", met=not differ)
