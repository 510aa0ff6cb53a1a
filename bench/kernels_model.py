"""Sections of `bench.kernels`: paged attention, and the kernels of a Llama-3-8B's layers in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.kernels_cases import (
    LLAMA_3_8B,
    PREFILL_TOKENS,
    adapter_bytes,
    base_bytes,
    copies,
    fp8_kv_bytes,
    kv_bytes,
    prefill_flops,
    segments,
)
from bench.kernels_layers import Context, RandomDecoder, context, expands_apart
from bench.kernels_pools import stored
from bench.kernels_timing import Clock, Device, result
from bench.record import Result
from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.lora.step import LoraStep
from lorafleet_runtime.model.config import LORA_TARGETS, DecoderConfig

ATTENTION_GOAL, BASE_GOAL = 0.85, 1.25
LEAST_FLOOR = 20e-6
"""Seconds of copying, from which on a share of bandwidth says something of the kernel and not of starting it."""
OVERHEADS = {8: 0.06, 64: 0.27}
"""Goals by distinct adapters of rank 16 in a batch of 64."""
ROWS, LENGTH = 64, 1024
PROMPTS = (PREFILL_TOKENS, 4 * PREFILL_TOKENS)
MEMORY_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class DecodeCase:
    name: str
    contexts: tuple[int, ...]
    fp8: bool = False


def attention_cases() -> list[DecodeCase]:
    """Batch 1-256, contexts 128 to 32k: those whose KV of a layer stays below 5 GB."""
    even = [(1, 128), (1, 2048), (1, 32768), (8, 128), (8, 4096), (8, 32768), (32, 1024), (32, 32768), (64, 1024),
            (64, 8192), (256, 128), (256, 1024), (256, 4096)]  # fmt: skip
    cases = [DecodeCase(f"{rows} rows of {length}", (length,) * rows) for rows, length in even]
    cases.append(DecodeCase("1 row of 32768, 63 of 512", (32768, *(512,) * 63)))
    cases.append(DecodeCase("128 rows of 128-16384", tuple(128 << (i % 8) for i in range(128))))
    halved = [(1, 32768), (64, 1024), (64, 8192), (256, 1024)]
    return cases + [DecodeCase(f"{rows} rows of {length}, fp8", (length,) * rows, True) for rows, length in halved]


def attention_results(
    device: Device, clock: Clock, cases: Sequence[DecodeCase], model: DecoderConfig = LLAMA_3_8B
) -> list[Result]:
    found: list[Result] = []
    for case in cases:
        if clock.over:
            print(f"attention: the budget ended before {case.name}")
            return found
        moved = (fp8_kv_bytes if case.fp8 else kv_bytes)(sum(case.contexts), model)
        count = copies(moved, device.cache)
        config = replace(model, num_layers=count)
        try:
            held = context(config, case.contexts, (), device.device, fp8=case.fp8)
        except torch.cuda.OutOfMemoryError:
            print(f"left out: attention, {case.name}: this card's memory does not hold it")
            continue
        qkv, out = _queries(len(case.contexts), device, model)
        seconds = device.time(partial(_decodes, held, qkv, out), count)
        share = moved / seconds / device.bandwidth
        large = moved / device.bandwidth >= LEAST_FLOOR
        name = f"attention, {case.name}"
        found.append(result(name, "decode", 1e6 * seconds, "us", 1e6 * moved / device.bandwidth,
                            seconds * device.bandwidth / moved))  # fmt: skip
        goal, met = (f">= {ATTENTION_GOAL}", share >= ATTENTION_GOAL) if large else ("", None)
        found.append(result(name, "share of copy bandwidth", share, "", 1.0, share, goal, met))
        del held
    return found


def prefill_results(
    device: Device, clock: Clock, prompts: Sequence[int] = PROMPTS, model: DecoderConfig = LLAMA_3_8B
) -> list[Result]:
    """Against `scaled_dot_product_attention` of one fresh prompt, which reads keys that lie in order."""
    found: list[Result] = []
    for tokens in prompts:
        if clock.over:
            return found
        count = copies(kv_bytes(tokens, model), device.cache)
        config = replace(model, num_layers=count)
        held = context(config, (), [(0, tokens)], device.device)
        qkv, out = _queries(tokens, device, model)
        heads = qkv.view(1, tokens, -1, config.head_dim).transpose(1, 2)
        parts = torch.split(heads, [config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=1)
        q, k, v = (part.contiguous() for part in parts)
        flops = prefill_flops(tokens, model)
        ours = flops / device.time(partial(_prefills, held, qkv, out), count) / 1e12
        theirs = flops / device.time(partial(_dense, q, k, v, count), count) / 1e12
        found.append(result(f"attention, prompt of {tokens}", "prefill, over torch's own (dense)", ours,
                            "TFLOP/s", theirs, ours / theirs))  # fmt: skip
    return found


def layer_results(
    device: Device, clock: Clock, model: DecoderConfig = LLAMA_3_8B, rows: int = ROWS, length: int = LENGTH,
    overheads: Mapping[int, float] = OVERHEADS,
) -> list[Result]:  # fmt: skip
    """As many layers as memory holds; bounds are of as many."""
    layers = layers_that_fit(device.memory, model)
    config = replace(model, num_layers=layers)
    decoder = RandomDecoder.of(config, device.device)
    found = [_base_decode(decoder, device)]
    held = context(config, [length] * rows, (), device.device)
    x = torch.zeros(rows, config.hidden_size, dtype=torch.bfloat16, device=device.device)
    noise = torch.randn_like(x)

    def run(lora: LoraStep | None) -> None:
        x.copy_(noise)
        decoder(x, held.attention, lora)

    base = device.time(partial(run, None), layers)
    weights = base_bytes(config) - base_bytes(replace(model, num_layers=0))
    layer_bytes = weights + layers * kv_bytes(rows * length, model)
    case = f"layer, {rows} rows of {length}, mean of {layers} layers"
    found.append(result(case, "base", 1e6 * base, "us"))
    for count, goal in overheads.items():
        if clock.over:
            return found
        adapters = stored(config, (16,) * count, LORA_TARGETS, device.device)
        step = adapters.step(segments(rows, count), rows, Card.of(device.device))
        fused = device.time(partial(run, step), layers)
        ratio, ideal = fused / base, 1 + count * adapter_bytes(16, config) / layer_bytes
        metric = f"{count} adapters r16, over base (by bytes {ideal:.3f})"
        found.append(result(case, metric, 1e6 * fused, "us", 1e6 * base, ratio, f"<= {1 + goal:.2f}",
                            ratio <= 1 + goal))  # fmt: skip
        step.beside = None
        in_line = device.time(partial(run, step), layers)
        found.append(result(case, f"{count} adapters r16, shrinks in line, over beside the products", 1e6 * in_line,
                            "us", 1e6 * fused, in_line / fused))  # fmt: skip
        with expands_apart():
            apart = device.time(partial(run, step), layers)
        found.append(result(case, f"{count} adapters r16, expands apart, over fused (both in line)", 1e6 * apart,
                            "us", 1e6 * in_line, apart / in_line))  # fmt: skip
        del adapters, step
    return found


def layers_that_fit(free: int, model: DecoderConfig) -> int:
    """With lm_head, KV of the batch, and 64 adapters of rank 16."""
    one, head = replace(model, num_layers=1), base_bytes(replace(model, num_layers=0))
    each = base_bytes(one) - head + kv_bytes(ROWS * LENGTH, model) + max(OVERHEADS) * adapter_bytes(16, one)
    return max(2, min(model.num_layers, int((free * MEMORY_SHARE - head) // each)))


def _base_decode(decoder: RandomDecoder, device: Device) -> Result:
    """One row, short context: what is read is the weights."""
    config, layers = decoder.config, decoder.config.num_layers
    held = context(config, [128], (), device.device)
    x = torch.randn(1, config.hidden_size, device=device.device).to(torch.bfloat16)

    def step() -> None:
        decoder.logits(decoder(x, held.attention, None))

    seconds = device.time(step, 1)
    bound = base_bytes(config) / device.bandwidth
    ratio = seconds / bound
    case, metric = f"base decode, 1 row, {layers} layers and lm_head", "step, over its weights at copy bandwidth"
    return result(case, metric, 1e3 * seconds, "ms", 1e3 * bound, ratio, f"<= {BASE_GOAL}", ratio <= BASE_GOAL)


def _queries(rows: int, device: Device, config: DecoderConfig) -> tuple[Tensor, Tensor]:
    width = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    qkv = torch.randn(rows, width, device=device.device).to(torch.bfloat16)
    return qkv, torch.empty(rows, config.num_heads * config.head_dim, dtype=torch.bfloat16, device=device.device)


def _decodes(held: Context, qkv: Tensor, out: Tensor) -> None:
    for layer in range(len(held.pool)):
        held.attention.decode(layer, qkv, out)


def _prefills(held: Context, qkv: Tensor, out: Tensor) -> None:
    for layer in range(len(held.pool)):
        held.attention.prefill(layer, qkv, out)


def _dense(q: Tensor, k: Tensor, v: Tensor, times: int) -> None:
    for _ in range(times):
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
